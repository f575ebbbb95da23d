"""Verifies an artifact: every engine in it against eager fair-esm in float64."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
import torch

from exporter.parity.budgets import budgets_for
from exporter.parity.oracle import run_eager
from exporter.parity.packs import parity_packs
from exporter.parity.verdict import Report, judge
from exporter.weights import Reference, fair_esm_version
from runtime.engine import load
from runtime.manifest import Manifest
from runtime.pooling import Pool

FILE_NAME = "parity.json"
SCHEMA_VERSION = 1


def verify(
    folder: Path,
    manifest: Manifest,
    reference: Reference,
    engines: Iterable[str] | None = None,
    seed: int = 0,
) -> Report:
    """Compares engines with the reference on every pack.

    Args:
        folder: the artifact.
        manifest: of the artifact.
        reference: eager fair-esm with the weights that the artifact was built from.
        engines: formats; None takes all that the manifest lists.
        seed: of the random packs.

    Raises:
        EngineError: an engine cannot be loaded here.
    """
    packs = parity_packs(seed)
    layers = tuple(manifest.layers)
    pooling: Pool = manifest.pool or "mean"
    oracle = run_eager(reference.model, packs, layers, pooling, torch.float64)
    eager = run_eager(reference.model, packs, layers, pooling, getattr(torch, manifest.dtype))
    verdicts = []
    for name in manifest.engines if engines is None else engines:
        with load(folder, name, attention="auto", check_files=False) as engine:
            verdicts.append(judge(engine, manifest.architecture, packs, oracle, eager, pooling))
    return Report(
        schema_version=SCHEMA_VERSION,
        artifact=manifest.name,
        dtype=manifest.dtype,
        seed=seed,
        reference={
            "fair-esm": fair_esm_version(),
            "torch": str(torch.__version__),
            "layer_norm": layer_norm_of(reference),
            "weights": f"{reference.origin.kind}: {reference.origin.source}",
        },
        budgets={
            budget.name: budget.limit
            for budget in budgets_for(manifest.dtype, manifest.architecture.num_layers)
        },
        engines=verdicts,
    )


def layer_norm_of(reference: Reference) -> str:
    """Which LayerNorm fair-esm took: apex's where it is installed, else PyTorch's."""
    kind = type(reference.model.emb_layer_norm_after)
    return f"{kind.__module__}.{kind.__qualname__}"


def write_report(report: Report, folder: Path) -> None:
    """Writes ``parity.json``."""
    text = msgspec.json.format(msgspec.json.encode(report, order="deterministic"), indent=2)
    (folder / FILE_NAME).write_bytes(text + b"\n")
