"""Validates an engine where it runs: the artifact's golden proteins against their stored answers.

The same engine file on another CPU, GPU, driver or library version is proven here, without
fair-esm and without the exporter.
"""

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime import manifest as manifests
from runtime import pooling, tokenizer
from runtime.engine import Engine, Outputs
from runtime.errors import ArtifactError, Esm2Error
from runtime.manifest import EMBEDDING, Manifest
from runtime.packing import PackedBatch


@dataclasses.dataclass(frozen=True)
class Golden:
    """A few proteins and eager fair-esm's float64 answers.

    Attributes:
        sequences: of N proteins, with inline tokens such as ``<mask>``.
        input_ids: ``[T]`` int64, by fair-esm's tokenizer.
        cu_seqlens: ``[N + 1]`` int32.
        rows: ``[R]``, the rows of the pack whose answers are stored.
        answers: ``logits`` ``[R, 33]``, ``representations.<k>`` ``[R, E]``, and ``pooled``
            ``[N, E]``, by the name ``EMBEDDING`` too.
    """

    sequences: tuple[str, ...]
    input_ids: NDArray[np.int64]
    cu_seqlens: NDArray[np.int32]
    rows: NDArray[np.int64]
    answers: dict[str, NDArray[np.float64]]


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
    """Runs the golden proteins through ``engine``, together and the first of them alone.

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
    for pack, count in (("all proteins", len(golden.sequences)), ("the first alone", 1)):
        num_tokens = int(golden.cu_seqlens[count])
        kept = golden.rows < num_tokens
        try:
            batch = PackedBatch.from_tokens(
                [tokenizer.tokenize(sequence) for sequence in golden.sequences[:count]]
            )
            comparisons.append(_compare_tokens(pack, batch, golden, count))
            got = all_outputs(engine, engine.run(batch), batch, manifest)
        except Esm2Error as error:
            comparisons.append(
                Comparison(pack=pack, tensor="all outputs", passed=False, problem=str(error))
            )
            continue
        for tensor, limit in limits.items():
            stored = golden.answers[tensor]
            if manifest.rows_of(tensor) == "proteins":
                rows, expected, num_rows = np.arange(count), stored[:count], count
            else:
                rows, expected, num_rows = golden.rows[kept], stored[kept], num_tokens
            shape = (num_rows, stored.shape[1])
            comparisons.append(
                _compare(pack, tensor, got.get(tensor), expected, shape, rows, limit)
            )
    spec = engine.spec
    return SelfTest(
        spec.artifact, spec.format, spec.library, spec.device, spec.attention, tuple(comparisons)
    )


def read_golden(folder: Path, manifest: Manifest) -> Golden:
    """Reads the golden file.

    Raises:
        ArtifactError: missing, damaged, or without proteins.
    """
    path = folder / manifest.golden.file
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        golden = Golden(
            sequences=tuple(str(sequence) for sequence in arrays.pop("sequences")),
            input_ids=arrays.pop("input_ids"),
            cu_seqlens=arrays.pop("cu_seqlens"),
            rows=arrays.pop("rows"),
            # Who pools makes no difference to the answer.
            answers={EMBEDDING: arrays["pooled"], **arrays},
        )
    except Exception as error:  # a damaged archive fails in the classes of three libraries
        raise ArtifactError(
            f"cannot read {path}: {error}. Export again or copy the artifact anew"
        ) from None
    if not golden.sequences or not len(golden.rows) or not manifest.golden.limits:
        raise ArtifactError(f"{path} holds no proteins to compare with. Export again")
    if missing := manifest.golden.limits.keys() - golden.answers.keys():
        raise ArtifactError(f"{path} holds no {', '.join(sorted(missing))}. Export again")
    return golden


def _compare_tokens(pack: str, batch: PackedBatch, golden: Golden, count: int) -> Comparison:
    bounds = golden.cu_seqlens[: count + 1]
    same = np.array_equal(batch.input_ids, golden.input_ids[: bounds[-1]]) and np.array_equal(
        batch.cu_seqlens, bounds
    )
    problem = "" if same else "the runtime's tokens or boundaries are not fair-esm's"
    return Comparison(pack=pack, tensor="input_ids, cu_seqlens", passed=same, problem=problem)


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
    shape: tuple[int, ...], rows: NDArray[np.int64], limit: float,
) -> Comparison:  # fmt: skip
    def failed(problem: str) -> Comparison:
        return Comparison(pack=pack, tensor=tensor, limit=limit, passed=False, problem=problem)

    if actual is None:
        return failed("the engine has no such output")
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
