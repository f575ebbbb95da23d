"""Builds the engines of one model in one dtype, and says what the parity gate thought of them."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.gpu_check.plan import Job
from benchmarks.gpu_check.results import Parity, Status, Step, reason_of
from exporter.build import BuildOptions, build
from exporter.errors import CheckpointError
from exporter.model.reference import WeightsSource
from exporter.parity.report.schema import ParityError, Report
from exporter.parity.rules.verdict import EngineVerdict
from exporter.parity.truth.cache import Cache
from runtime import manifest as manifests

Emit = Callable[[Step], None]


def run_gate(job: Job, work: Path, emit: Emit) -> None:
    """Emits one step for each engine; those that passed are then in an artifact in ``work``.

    A build publishes nothing if one engine of several fails, so the others are built again
    without it.

    Args:
        job: of kind ``gate``.
        work: for artifacts, and for eager fair-esm's answers, which all dtypes share.
        emit: receives each step as soon as it is known.

    Raises:
        CheckpointError: the weights cannot be loaded, so no engine can be built.
    """
    _build(job, job.engines, work, emit)


def artifact_with(engine: str, model: str, dtype: str, work: Path) -> Path:
    """Where ``run_gate`` published ``engine``.

    Raises:
        FileNotFoundError: nowhere.
    """
    for folder in sorted(work.glob(f"{model}-{dtype}*")):
        published = (folder / manifests.FILE_NAME).is_file()
        if published and engine in manifests.read(folder, check_files=False).engines:
            return folder
    raise FileNotFoundError(f"no artifact of {model} in {dtype} holds {engine!r}")


def _build(job: Job, engines: Sequence[str], work: Path, emit: Emit) -> None:
    started = time.perf_counter()
    folder = work / "-".join([job.model.name, job.dtype, *engines])
    options = BuildOptions(
        source=WeightsSource(job.model.kind, job.model.value),
        targets=engines,
        dtype=job.dtype,
        out=folder,
        device=job.device,
    )
    try:
        _, report = build(options, lambda line: print(line, flush=True), Cache(work / "answers"))
    except CheckpointError:
        raise
    except torch.OutOfMemoryError as error:
        # Of eager fair-esm in float64: the card is too small to prove anything of this size.
        _emit_all(job, engines, "not run", reason_of(error), started, emit)
    except ParityError as error:
        if error.report is None:
            # Eager fair-esm itself overflows: that holds for every engine.
            _emit_all(job, engines, "failed", str(error), started, emit)
        else:
            _emit_without_failures(job, error.report, work, started, emit)
    except Exception as error:  # of any library that an exporter calls
        if len(engines) == 1:
            _emit_all(job, engines, "failed", reason_of(error), started, emit)
            return
        shutil.rmtree(folder, ignore_errors=True)
        for engine in engines:
            _build(job, [engine], work, emit)
    else:
        for verdict in report.engines:
            emit(_step(job, verdict, started))


def _emit_without_failures(
    job: Job, report: Report, work: Path, started: float, emit: Emit
) -> None:
    passed = [verdict.engine for verdict in report.engines if verdict.status == "passed"]
    for verdict in report.engines:
        if verdict.engine not in passed:
            emit(_step(job, verdict, started))
    if passed:
        _build(job, passed, work, emit)


def _step(job: Job, verdict: EngineVerdict, started: float) -> Step:
    parity = None
    if verdict.rows:
        summary = verdict.summary()
        parity = Parity(
            packs=summary.packs,
            worst_relative_l2=summary.worst_relative_l2,
            worst_ratio_to_eager=summary.worst_ratio_to_eager,
            library=verdict.library,
            device=verdict.device,
            attention=verdict.attention,
        )
    return Step(
        kind="gate",
        model=job.model.name,
        dtype=job.dtype,
        engine=verdict.engine,
        status="not run" if verdict.status == "not measured" else verdict.status,
        reason=verdict.reason,
        seconds=time.perf_counter() - started,
        parity=parity,
    )


def _emit_all(
    job: Job, engines: Sequence[str], status: Status, reason: str, started: float, emit: Emit
) -> None:
    for engine in engines:
        seconds = time.perf_counter() - started
        emit(Step("gate", job.model.name, job.dtype, engine, status, reason, seconds))
