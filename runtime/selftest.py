"""Validates an engine where it runs: the artifact's golden proteins against their stored answers.

The same engine file on another CPU, GPU, driver or library version is proven here, without
fair-esm and without the exporter.
"""

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime import manifest as manifests
from runtime import pooling, repeats
from runtime.engine import Engine, Outputs
from runtime.errors import Esm2Error
from runtime.golden import GoldenPack, packs_of, read_golden
from runtime.manifest_schema import EMBEDDING, Manifest
from runtime.packing import PackedBatch

# What depends on the packs before, or on another thread, does not ask how large a pack is.
REPEATED_TOKENS, REPETITIONS = 64, 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One output of one pack: its relative L2 error against the stored answer, and the limit.

    ``measured`` is None, and ``problem`` says why, where nothing could be compared.
    """

    pack: str
    tensor: str
    measured: float | None = None
    limit: float | None = None
    passed: bool
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class SelfTest:
    """What one engine answered to the golden proteins."""

    artifact: str
    engine: str
    library: str
    device: str
    attention: str
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        """Whether something was compared, and all of it is within its limit."""
        return bool(self.comparisons) and all(c.passed for c in self.comparisons)

    @property
    def worst(self) -> Comparison:
        """The comparison furthest beyond, or nearest to, its limit."""
        return max(self.comparisons, key=_margin)

    def worst_line(self) -> str:
        """``worst`` for people."""
        worst = self.worst
        what = (
            worst.problem
            or f"relative L2 {worst.measured:.1e} where at most {worst.limit:.1e} is allowed"
        )
        return (
            f"engine {self.engine!r} ({self.library}, {self.device}) "
            f"{'passed' if self.passed else 'failed'} its selftest: {worst.tensor} of "
            f"{worst.pack}: {what}"
        )


def selftest(
    engine: Engine, folder: Path, manifest: Manifest, check_files: bool = True
) -> SelfTest:
    """Runs the golden proteins through ``engine``, in the packs of ``runtime.golden.packs_of``.

    Args:
        engine: loaded from ``folder``.
        folder: the artifact.
        manifest: of it.
        check_files: compare the files that the engine reads with the manifest first. Weights are
            mapped, not copied: a file that was cut since would end the process.

    Raises:
        ArtifactError: a file was changed, or the golden file holds no proteins.
    """
    if check_files:
        used = [*manifest.engines[engine.spec.format].files, manifest.golden.file]
        manifests.check(manifest, folder, used)
    golden = read_golden(folder, manifest)
    limits = manifest.golden.own_limits.get(engine.spec.format, manifest.golden.limits)
    comparisons: list[Comparison] = []
    ran: dict[str, repeats.First] = {}
    for pack in packs_of(golden):
        batch = PackedBatch.from_tokens(pack.tokens)
        if ran and engine.unsupported_reasons(batch):
            continue  # beyond what a TensorRT plan was built for
        try:
            comparisons.append(_compare_tokens(pack, batch))
            outputs = engine.run(batch)
            got = all_outputs(engine, outputs, batch, manifest)
            ran[pack.name] = batch, outputs
        except Esm2Error as error:
            comparisons.append(
                Comparison(pack=pack.name, tensor="all outputs", passed=False, problem=str(error))
            )
            continue
        for tensor, limit in limits.items():
            kind = manifest.rows_of(tensor)
            num_rows, rows = pack.rows_of(kind)
            if kind == "pairs" and not len(rows):
                continue  # single tokens have none
            comparisons.append(
                _compare(
                    pack.name,
                    tensor,
                    got.get(tensor),
                    pack.answers[tensor],
                    num_rows,
                    rows,
                    limit,
                )
            )
            if len(pack.copies) and kind == "tokens" and comparisons[-1].measured is not None:
                comparisons.append(_compare_copies(pack, tensor, got[tensor], limit))
    comparisons += _repeated(engine, ran)
    spec = engine.spec
    return SelfTest(
        spec.artifact, spec.format, spec.library, spec.device, spec.attention, tuple(comparisons)
    )


def _compare_tokens(pack: GoldenPack, batch: PackedBatch) -> Comparison:
    same = np.array_equal(batch.input_ids, pack.input_ids) and np.array_equal(
        np.diff(batch.cu_seqlens), pack.lengths
    )
    problem = "" if same else "the runtime's tokens or boundaries are not fair-esm's"
    return Comparison(pack=pack.name, tensor="input_ids, cu_seqlens", passed=same, problem=problem)


def _compare_copies(
    pack: GoldenPack, tensor: str, actual: NDArray[np.floating], limit: float
) -> Comparison:
    """Equal proteins of one pack with the first of them."""
    rows = actual[pack.copies].astype(np.float64)
    difference = np.linalg.norm((rows - rows[0]).reshape(len(rows), -1), axis=1)
    measured = float(difference.max() / np.linalg.norm(rows[0]))
    name = f"{len(rows)} copies in {pack.name}"
    return Comparison(
        pack=name, tensor=tensor, measured=measured, limit=limit, passed=measured <= limit
    )


def _repeated(engine: Engine, ran: dict[str, repeats.First]) -> list[Comparison]:
    """Small packs again: on a CPU the same numbers."""
    small = {name: pack for name, pack in ran.items() if pack[0].num_tokens <= REPEATED_TOKENS}
    if engine.spec.device != "cpu" or not small:
        return []
    found = repeats.problems(engine, small, REPETITIONS)
    return [
        Comparison(
            pack="small packs again",
            tensor="all outputs",
            passed=not found,
            problem="; ".join(found),
        )
    ]


def all_outputs(
    engine: Engine, outputs: Outputs, batch: PackedBatch, manifest: Manifest
) -> dict[str, NDArray[np.floating]]:
    """Everything a user can get: the engine's outputs, and what the runtime pools from them."""
    last = max(outputs.representations)
    how: pooling.Pool = manifest.pool or "mean"  # type: ignore[assignment]
    if engine.spec.device == "cpu":
        pooled = pooling.pool(outputs.representations[last], batch.cu_seqlens, how)
    else:
        pooled = engine.embed(batch, last, how)  # the device pools, so that is what is compared
    return {**outputs.tensors, EMBEDDING: pooled}


def _compare(
    pack: str, tensor: str, actual: NDArray[np.floating] | None, expected: NDArray[np.float64],
    num_rows: int, rows: NDArray[np.int64], limit: float,
) -> Comparison:  # fmt: skip
    def failed(problem: str) -> Comparison:
        return Comparison(pack=pack, tensor=tensor, limit=limit, passed=False, problem=problem)

    if actual is None:
        return failed("the engine has no such output")
    shape = (num_rows, expected.shape[1])
    if actual.shape != shape:
        return failed(f"shape {list(actual.shape)}, expected {list(shape)}")
    if not np.isfinite(actual).all():
        return failed("NaN or Inf")
    norm = float(np.linalg.norm(expected))
    if not norm > 0:
        return failed("the stored answer is empty or zero: nothing was compared")
    measured = float(np.linalg.norm(actual[rows].astype(np.float64) - expected)) / norm
    return Comparison(
        pack=pack, tensor=tensor, measured=measured, limit=limit, passed=measured <= limit
    )


def _margin(comparison: Comparison) -> float:
    if comparison.measured is None or comparison.limit is None:
        return 0.0 if comparison.passed else float("inf")
    return comparison.measured / comparison.limit
