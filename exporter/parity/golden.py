"""``golden.npz``: a few proteins and their float64 answers, for ``runtime.selftest``.

NumPy's own format, because a container with ONNX Runtime alone has no safetensors library.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from exporter.model.reference import Reference
from exporter.parity.answers import Answers
from exporter.parity.report.schema import ParityError
from exporter.parity.rules.budgets import (
    FLOAT32_SHALLOW,
    RELATIVE_RULE,
    budgets_for,
)
from exporter.parity.rules.heads import OF_A_PACK
from exporter.parity.rules.metrics import compare
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.overflow import find_overflow
from exporter.parity.truth.packs import (
    RARE_RESIDUES,
    Pack,
    Protein,
    parity_packs,
    protein,
    rare,
)
from exporter.weights.int8 import read_recipe
from runtime.golden import BARE
from runtime.manifest_schema import EMBEDDING, HEAD, GoldenEntry
from runtime.pairs import CONTACTS, pair_bounds
from runtime.pooling import Pool

FILE_NAME = "golden.npz"
SEED = 2019
MAX_BYTES = 1_500_000
# Contacts of a protein that are stored.
PAIRS = 2_000
# Even of a model so wide that they do not fit: every layer of 3B, say.
MIN_ROWS = 4
# One answer, whether a graph pools or the runtime.
_STORED_AS = {EMBEDDING: "pooled"}


def golden_pack() -> Pack:
    """One residue, common, masked and rare ones, and the gate's own protein beyond 2,048 tokens."""
    random = np.random.default_rng(SEED)
    return [
        protein(random, 42),
        protein(random, 1),
        protein(random, 64, masked=0.3),
        Protein(RARE_RESIDUES + rare(random, 48).sequence),
        protein(random, 1030),
        parity_packs()["beyond 2048"][0],
    ]


def bare_pack() -> Pack:
    """Single tokens without BOS and EOS."""
    return [Protein("M", bare=True), Protein("K", bare=True)]


def write_golden(
    folder: Path,
    reference: Reference,
    *,
    layers: tuple[int, ...],
    pool: Pool | None,
    dtype: str,
    cache: Cache | None,
    int8_engines: Iterable[str] = (),
    device: str = "cpu",
) -> GoldenEntry:
    """Writes the file and gives its entry for the manifest.

    Args:
        folder: the artifact.
        reference: eager fair-esm with the original weights.
        layers: exported.
        pool: of the ``pooled`` output; None means that the runtime pools, by ``"mean"``.
        dtype: of the engines: the limits are this dtype's.
        cache: of eager fair-esm's answers.
        int8_engines: formats with limits of their own.
        device: where eager fair-esm runs, ``"cpu"`` or ``"cuda"``.

    Raises:
        ParityError: the dtype overflows; names the layer.
    """
    packs = golden_packs()
    run = partial(run_eager, reference, packs, layers, pool or "mean", cache=cache, device=device)
    in_float64, eager = (run(dtype=each) for each in (torch.float64, getattr(torch, dtype)))
    truth, bare = (in_float64[name].tensors for name in packs)
    # The logits of an LM head that gives one number everywhere are no measure.
    names = [name for name in truth if name != "logits" or np.ptp(truth[name]) > 0]
    of_golden = in_float64["golden"]
    rows = _chosen_rows(of_golden, sum(truth[name].shape[1] for name in names if name != CONTACTS))
    rows_of = {name: rows for name in names if name not in of_golden.per_protein}
    arrays = {
        "sequences": np.array([protein.sequence for protein in packs["golden"]]),
        "input_ids": of_golden.input_ids,
        "cu_seqlens": of_golden.cu_seqlens,
        "rows": rows,
        f"{BARE}sequences": np.array([token.sequence for token in packs["bare"]]),
    }
    if CONTACTS in truth:
        arrays["pair_rows"] = rows_of[CONTACTS] = _chosen_pairs(of_golden)
    for name in names:
        key = _STORED_AS.get(name, name)
        arrays[key] = truth[name][rows_of[name]] if name in rows_of else truth[name]
        arrays[f"{BARE}{key}"] = bare[name]
    np.savez(folder / FILE_NAME, **arrays)  # type: ignore[arg-type]
    try:
        eager_errors = _errors(in_float64, eager, names)
    except ValueError as error:
        place = find_overflow(reference, getattr(torch, dtype), packs["golden"])
        raise ParityError(
            f"eager fair-esm in {dtype} gives {error}: {place or 'not in the packed forward'}. "
            "Nothing was published"
        ) from None
    num_layers = reference.architecture.num_layers
    limits = _limits(eager_errors, pool, lambda error: _limit(error, dtype, num_layers))
    own = {}
    if int8_engines := list(int8_engines):
        errors = _errors(
            in_float64, run(dtype=torch.float32, int8=read_recipe(folder), device="cpu"), names
        )
        own = dict.fromkeys(
            int8_engines, _limits(errors, pool, lambda error: _int8_limit(error, num_layers))
        )
    return GoldenEntry(file=FILE_NAME, limits=limits, own_limits=own)


def golden_packs() -> dict[str, Pack]:
    """What eager fair-esm answers for the file."""
    return {"golden": golden_pack(), "bare": bare_pack()}


def _chosen_pairs(truth: Answers) -> NDArray[np.int64]:
    """``PAIRS`` of each protein, at random."""
    bounds = pair_bounds(truth.cu_seqlens)
    random = np.random.default_rng(SEED)
    return np.concatenate([
        np.sort(random.choice(end - start, min(end - start, PAIRS), replace=False)) + start
        for start, end in pairwise(bounds)
    ])  # fmt: skip


def _errors(
    truth: Mapping[str, Answers], eager: Mapping[str, Answers], names: Iterable[str]
) -> dict[str, float]:
    """Of each output, in the pack where it is largest."""
    return {
        name: max(
            _error(truth[pack], eager[pack], name)
            for pack in truth
            if truth[pack].tensors[name].size  # single tokens have no contacts
        )
        for name in names
    }


def _limits(
    errors: dict[str, float], pool: Pool | None, limit: Callable[[float], float]
) -> dict[str, float]:
    limits = {
        name: _head_limit(error) if name == HEAD else limit(error) for name, error in errors.items()
    }
    return limits if pool is None else {**limits, _STORED_AS[EMBEDDING]: limits[EMBEDDING]}


def _int8_limit(eager_error: float, num_layers: int) -> float:
    """The relative rule of int8; nothing of layer 0 is quantised, so there float32's ceiling."""
    relative = next(b.limit for b in budgets_for("int8", num_layers) if b.quantity == "ratio")
    return max(relative * eager_error, _limit(eager_error, "float32", num_layers))


def _limit(eager_error: float, dtype: str, num_layers: int) -> float:
    """The ceiling of the dtype if it has one, else the relative rule.

    Not the relative rule in float32: what eager fair-esm's float32 error is depends on the machine.
    """
    for budget in budgets_for(dtype, num_layers):
        if budget.quantity == "relative_l2":
            return budget.limit
    return RELATIVE_RULE[0].limit * eager_error


def _head_limit(eager_error: float) -> float:
    """Of the protein where eager's is largest: a single number has an error of its own."""
    return OF_A_PACK.limit * max(eager_error, FLOAT32_SHALLOW.limit)


def _error(truth: Answers, eager: Answers, name: str) -> float:
    """Relative L2 of an output; of a head, of its worst protein."""
    actual, expected = eager.tensors[name], truth.tensors[name]
    if name == HEAD:
        return compare(actual, expected, truth.bounds(name), True).worst_protein_relative_l2
    return compare(actual, expected, np.array([0, len(expected)])).relative_l2


def _chosen_rows(truth: Answers, width: int) -> NDArray[np.int64]:
    """As many rows as ``MAX_BYTES`` allows: BOS and EOS of each protein, then others at random."""
    ends = np.concatenate([truth.cu_seqlens[:-1], truth.cu_seqlens[1:] - 1])
    others = np.setdiff1d(np.arange(len(truth.input_ids)), ends)
    random = np.random.default_rng(SEED)
    in_order = np.concatenate([random.permutation(ends), random.permutation(others)])
    return np.sort(in_order[: max(MIN_ROWS, MAX_BYTES // (8 * width))]).astype(np.int64)
