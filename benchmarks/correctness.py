"""The truth for every contender: eager fair-esm in float64 on a fixed set of proteins."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.processes import Worker
from exporter.model.reference import Reference
from exporter.parity.rules.budgets import (
    FLOAT32_ANY_DEPTH,
    FLOAT32_SHALLOW,
    INT8_RULES,
    SHALLOW_LAYERS,
)
from exporter.parity.rules.metrics import UNBOUNDED, compare
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.packs import Pack, protein
from runtime.manifest_schema import Manifest
from runtime.user_cache import default_folder

# The peers' accuracy is theirs, and is reported; beyond this they compute something else.
PEER_LIMIT = 1e-4
INT8_PEER_LIMIT = next(rule.limit for rule in INT8_RULES if rule.quantity == "relative_l2")
SEED = 11


class Truth:
    """What the last layer should be for the fixed proteins.

    Args:
        reference: eager fair-esm with the artifact's weights.
        cache: of its answers; None takes the user's.
    """

    def __init__(self, reference: Reference, cache: Cache | None = None):
        last = reference.architecture.num_layers
        answers = run_eager(
            reference, {"fixed": proteins()}, (last,), "mean", torch.float64,
            cache or Cache(default_folder()),
        )["fixed"]  # fmt: skip
        self.expected = answers.tensors[f"representations.{last}"]
        self.bounds = answers.cu_seqlens
        self.token_ids = [
            ids.tolist() for ids in np.split(answers.input_ids, answers.cu_seqlens[1:-1])
        ]

    def error_of(self, worker: Worker) -> float:
        """Relative L2 of what ``worker`` answers; ``UNBOUNDED`` for NaN or another shape."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.npy"
            worker.ask("answer", proteins=self.token_ids, path=str(path))
            try:
                return compare(np.load(path), self.expected, self.bounds).relative_l2
            except ValueError:
                return UNBOUNDED


def proteins() -> Pack:
    """Of several lengths, one a single residue: together they make a padded batch.

    Without masks, like all that is timed: in transformers 4.57.6 masked residues in a padded row
    come out wrong, which says nothing about the speed of the peers that are built on it.
    """
    random = np.random.default_rng(SEED)
    return [
        protein(random, 42),
        protein(random, 1),
        protein(random, 110),
        protein(random, 64),
    ]


def float32_limit(num_layers: int) -> float:
    """The budget of float32 engines of this depth, as the parity gate has it."""
    return (FLOAT32_SHALLOW if num_layers <= SHALLOW_LAYERS else FLOAT32_ANY_DEPTH).limit


def limit_of(manifest: Manifest, engine: str) -> float:
    """What the manifest allows an engine's last layer."""
    limits = manifest.golden.own_limits.get(engine, manifest.golden.limits)
    return limits[f"representations.{manifest.layers[-1]}"]
