"""One job in a process of its own, so that a crash of it costs no other.

``python -m benchmarks.gpu_check.worker JOB RESULTS`` in the folder of all artifacts: JOB as JSON;
each step is appended to the file RESULTS, one JSON a line, as soon as it is known.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec

from benchmarks.gpu_check.gate import Emit, artifact_with, run_gate
from benchmarks.gpu_check.plan import Job
from benchmarks.gpu_check.results import Step, reason_of
from benchmarks.gpu_check.summary import status_of
from benchmarks.results import ModelResult
from exporter.errors import ExportError


def run(job: Job, results: Path, work: Path) -> None:
    """Does ``job`` and writes its steps."""

    def emit(step: Step) -> None:
        with results.open("ab") as file:
            file.write(msgspec.json.encode(step) + b"\n")

    if job.kind == "attention":
        _judge_kernels(job, emit)
        return
    if job.kind == "benchmark":
        _benchmark(job, work, emit)
        return
    for engine in job.engines:
        passed: list[Step] = []

        def emit_verdict(step: Step, passed: list[Step] = passed) -> None:
            emit(step)
            passed += [step] if step.status == "passed" else []

        run_gate(job, engine, work, emit_verdict)
        _look_for_waits(job, engine, bool(passed), work, emit)


def _judge_kernels(job: Job, emit: Emit) -> None:
    from benchmarks.gpu_check.attention import check_kernel

    for step in job.steps():
        started = time.perf_counter()
        try:
            step.status, step.reason, step.kernel = check_kernel(
                step.engine,  # type: ignore[arg-type]
                step.dtype,
                job.device,
            )
        except Exception as error:  # of any library that has a kernel
            step.status, step.reason = "failed", reason_of(error)
        step.seconds = time.perf_counter() - started
        emit(step)


def _look_for_waits(job: Job, engine: str, passed: bool, work: Path, emit: Emit) -> None:
    from benchmarks.gpu_check.synchronisation import look_for_waits

    step = Step("synchronisation", job.model.name, job.dtype, engine)
    started = time.perf_counter()
    if not passed:
        step.reason = "the engine did not pass the gate"
    else:
        try:
            folder = artifact_with(engine, job.model.name, job.dtype, work)
            step.status, step.reason = look_for_waits(folder, engine, job.device)
        except Exception as error:  # of any library that runs an engine
            step.status, step.reason = "failed", reason_of(error)
    step.seconds = time.perf_counter() - started
    emit(step)


def _benchmark(job: Job, work: Path, emit: Emit) -> None:
    from benchmarks.gpu_check.throughput import measure

    started = time.perf_counter()

    def emit_benchmark(found: ModelResult) -> None:
        status, reason = status_of(found)
        seconds = time.perf_counter() - started
        emit(Step("benchmark", job.model.name, "", "", status, reason, seconds, benchmark=found))

    emit_benchmark(measure(job, work, lambda line: print(line, flush=True), emit_benchmark))


def _end_with_the_check() -> None:
    """Kills this process and what it started when the check is gone, which holds stdin open."""
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_check, daemon=True).start()
    job_, results_ = sys.argv[1:]
    try:
        run(msgspec.json.decode(job_, type=Job), Path(results_), Path())
    except ExportError as error_:
        sys.exit(str(error_))
