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

from benchmarks.gpu_check.plan import Job
from benchmarks.gpu_check.results import Emit, Step, reason_of
from benchmarks.gpu_check.summary import status_of
from benchmarks.results import ModelResult
from exporter.errors import ExportError

NO_GATE = "the engine did not pass the gate"


def run(job: Job, results: Path, work: Path) -> None:
    """Does ``job`` and writes its steps."""

    def emit(step: Step) -> None:
        with results.open("ab") as file:
            file.write(msgspec.json.encode(step) + b"\n")

    if job.kind == "matrix rate":
        _measure_card(job, emit)
    elif job.kind == "attention":
        _judge_kernel(job, emit)
    elif job.kind == "c++":
        _run_from_cpp(job, work, emit)
    elif job.kind == "benchmark":
        _benchmark(job, work, emit)
    else:
        _gate(job, work, emit)


def _measure_card(job: Job, emit: Emit) -> None:
    from benchmarks.gpu_check.matrix_rate import cold_and_warm

    (step,) = job.steps()
    started = time.perf_counter()
    step.rates, step.status = cold_and_warm(job.device), "passed"
    step.seconds = time.perf_counter() - started
    emit(step)


def _judge_kernel(job: Job, emit: Emit) -> None:
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


def _gate(job: Job, work: Path, emit: Emit) -> None:
    from benchmarks.gpu_check.gate import artifact_with, run_gate
    from benchmarks.gpu_check.graphs import check_graphs
    from benchmarks.gpu_check.synchronisation import look_for_waits

    (engine,) = job.engines
    _, *rest = job.steps()
    passed: list[Step] = []

    def emit_verdict(step: Step) -> None:
        emit(step)
        passed.extend([step] if step.status == "passed" else [])

    run_gate(job, engine, work, emit_verdict)
    for step in rest:
        started = time.perf_counter()
        look = check_graphs if step.kind == "graphs" else look_for_waits
        if not passed:
            step.reason = NO_GATE
        else:
            try:
                folder = artifact_with(engine, job.model.name, job.dtype, work)
                step.status, step.reason = look(folder, engine, job.device)
            except Exception as error:  # of any library that runs an engine
                step.status, step.reason = "failed", reason_of(error)
        step.seconds = time.perf_counter() - started
        emit(step)


def _run_from_cpp(job: Job, work: Path, emit: Emit) -> None:
    from benchmarks.gpu_check.cpp import NoProgramError, build, check_answers
    from benchmarks.gpu_check.gate import artifact_with

    for step in job.steps():
        started = time.perf_counter()
        try:
            folder = artifact_with(step.engine, step.model, step.dtype, work)
            program = build(work / "cpp")  # in no time if it is built
            step.status, step.reason = check_answers(program, folder, step.engine, job.device)
        except FileNotFoundError:
            step.reason = NO_GATE
        except NoProgramError as error:
            step.reason = str(error)
        step.seconds = time.perf_counter() - started
        emit(step)


def _benchmark(job: Job, work: Path, emit: Emit) -> None:
    from benchmarks.gpu_check.throughput import measure

    started = time.perf_counter()

    def emit_benchmark(found: ModelResult) -> None:
        status, reason = status_of(found)
        seconds = time.perf_counter() - started
        (step,) = job.steps()
        step.status, step.reason = status, reason
        step.seconds, step.benchmark = seconds, found
        emit(step)

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
