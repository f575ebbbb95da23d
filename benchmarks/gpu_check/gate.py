"""Builds one engine of a model in one dtype, and says what the parity gate thought of it."""

import time
import traceback
from pathlib import Path

import torch

from benchmarks.gpu_check.plan import Job
from benchmarks.gpu_check.results import Emit, Parity, Step, reason_of
from exporter.build import build
from exporter.build_options import BuildOptions
from exporter.errors import CheckpointError
from exporter.model.reference import WeightsSource
from exporter.parity.report.schema import ParityError, Report
from exporter.parity.truth.cache import Cache
from runtime import manifest as manifests


def run_gate(job: Job, engine: str, work: Path, emit: Emit) -> None:
    """Emits one step; if the engine passed it is then in an artifact of its own in ``work``.

    Args:
        job: of kind ``gate``.
        engine: one of the job's, built alone: what another one does cannot cost it its verdict.
        work: for artifacts, and for eager fair-esm's answers, which all engines and dtypes share.
        emit: receives the step.

    Raises:
        CheckpointError: the weights cannot be loaded, so no engine can be built.
    """
    started = time.perf_counter()
    options = BuildOptions(
        source=WeightsSource(job.model.kind, job.model.value),
        targets=[engine],
        dtype=job.dtype,
        # As it is to be embedded: onnx-cuda and tensorrt bring [T, E] to the host without it.
        pool="mean",
        out=_folder(engine, job.model.name, job.dtype, work),
        device=job.device,
    )
    step = Step("gate", job.model.name, job.dtype, engine)
    try:
        _, report = build(options, lambda line: print(line, flush=True), Cache(work / "answers"))
        _judge(step, report)
    except CheckpointError:
        raise
    except torch.OutOfMemoryError as error:
        # Of eager fair-esm in float64: the card is too small to prove anything of this size.
        step.reason = reason_of(error)
    except ParityError as error:
        if error.report is None:  # eager fair-esm itself overflows
            step.status, step.reason = "failed", str(error)
        else:
            _judge(step, error.report)
    except Exception as error:  # of any library that an exporter calls
        traceback.print_exc()
        step.status, step.reason = "failed", reason_of(error)
    step.seconds = time.perf_counter() - started
    emit(step)


def artifact_with(engine: str, model: str, dtype: str, work: Path) -> Path:
    """Where ``run_gate`` published ``engine``.

    Raises:
        FileNotFoundError: nowhere.
    """
    folder = _folder(engine, model, dtype, work)
    if not (folder / manifests.FILE_NAME).is_file():
        raise FileNotFoundError(f"no artifact of {model} in {dtype} holds {engine!r}")
    return folder


def _folder(engine: str, model: str, dtype: str, work: Path) -> Path:
    return work / f"{model}-{dtype}-{engine}"


def _judge(step: Step, report: Report) -> None:
    (verdict,) = report.engines
    step.status = "not run" if verdict.status == "not measured" else verdict.status
    step.reason = verdict.reason
    if verdict.rows:
        summary = verdict.summary(report.packs)
        step.parity = Parity(
            packs=summary.packs,
            worst_relative_l2=summary.worst_relative_l2,
            worst_ratio_to_eager=summary.worst_ratio_to_eager,
            library=verdict.library,
            device=verdict.device,
            attention=verdict.attention,
        )
