"""Runs jobs in processes, within the time that there is; nothing that they do ends the check."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from benchmarks.gpu_check.plan import Job
from benchmarks.gpu_check.results import Step
from runtime.threads import default_threads

ROOT = Path(__file__).parents[2]
NO_TIME = "no time was left"
ENDED = "the check was ended"
HELD = "it had half of the time, and others waited for its place"
POLL_S = 0.1

Done = Callable[[list[Step]], None]


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    results: Path
    log: Path
    started: float
    read_bytes: int = 0
    reported: dict[tuple[str, ...], Step] = field(default_factory=dict)

    @property
    def age_s(self) -> float:
        """Seconds since its process was started."""
        return time.perf_counter() - self.started

    def missing(self) -> list[Step]:
        """What it has not reported, and what it has reported so far of a benchmark."""
        unfinished = self.job.kind == "benchmark"
        steps = self.job.steps()
        return [
            self.reported.get(step.key, step)
            for step in steps
            if unfinished or step.key not in self.reported
        ]


class Schedule:
    """Starts jobs and collects their steps.

    Args:
        work: for artifacts and results, on a disk with room for them.
        logs: one file for each job: what it printed.
        done: receives each step as soon as its process reports it.
    """

    def __init__(self, work: Path, logs: Path, done: Done):
        self._work = work
        self._logs = logs
        self._done = done

    def run(self, jobs: Sequence[Job], at_once: int, deadline: float) -> None:
        """Runs jobs in their order, ``at_once`` at a time, but one of each lane (see ``Job``).

        Where nothing else can run, one that has had half of the time is killed: it may hang.

        Args:
            jobs: the most important first.
            at_once: processes, which share the cores.
            deadline: by ``time.perf_counter``; then what runs is killed.
        """
        running: list[_Running] = []
        try:
            self._run(list(jobs), running, at_once, deadline)
        finally:  # Ctrl-C and SIGTERM come up through here
            for one in running:
                self._end(one, ENDED)

    def _run(
        self, waiting: list[Job], running: list[_Running], at_once: int, deadline: float
    ) -> None:
        patience = (deadline - time.perf_counter()) / 2
        while waiting or running:
            late = time.perf_counter() >= deadline
            if late:
                for too_late in waiting:
                    self._done(_with_reason(too_late.steps(), "not run", NO_TIME))
                waiting.clear()
            while len(running) < at_once:
                job = _first_startable(waiting, running)
                if job is None:
                    break
                waiting.remove(job)
                running.append(self._start(job, at_once))
            is_stuck = bool(waiting) and all(one.age_s > patience for one in running)
            for one in list(running):
                has_ended = one.process.poll() is not None
                self._collect(one)
                if has_ended or late or is_stuck:
                    self._end(one, NO_TIME if late else HELD)
                    running.remove(one)
            time.sleep(POLL_S if running else 0)

    def _start(self, job: Job, at_once: int) -> _Running:
        results, log = self._work / f"{job.name}.jsonl", self._logs / f"{job.name}.txt"
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        threads = str(max(1, default_threads() // at_once))
        command = [sys.executable, "-m", "benchmarks.gpu_check.worker"]
        results.unlink(missing_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*command, msgspec.json.encode(job).decode(), results.name],
                # There, so that what a report quotes has no paths of this machine.
                cwd=self._work,
                # Ends with this process, however that ends, and tells the worker so.
                stdin=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": path},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return _Running(job, process, results, log, time.perf_counter())

    def _collect(self, one: _Running) -> None:
        """Hands on what it has reported since the last look."""
        if not one.results.is_file():
            return
        with one.results.open("rb") as file:
            file.seek(one.read_bytes)
            # Half a line is one that is being written, or was when its process was killed.
            whole = file.read().rpartition(b"\n")[0]
        if whole:
            one.read_bytes += len(whole) + 1
            steps = [msgspec.json.decode(line, type=Step) for line in whole.split(b"\n")]
            one.reported |= {step.key: step for step in steps}
            self._done(steps)

    def _end(self, one: _Running, why: str) -> None:
        """Ends it for this reason, unless it has ended, and says why the rest is missing."""
        was_killed = one.process.poll() is None
        if was_killed:
            _kill(one.process)
        code = one.process.wait()
        assert one.process.stdin is not None
        one.process.stdin.close()
        self._collect(one)
        missing = one.missing()
        if was_killed:
            reason = f"stopped after {one.age_s:.0f} s: {why}"
            for step in missing:
                # What was measured by then stands.
                status = step.status if step.status == "passed" else "not run"
                _with_reason([step], status, reason)
        elif code:
            _with_reason(missing, "failed", self._last_words(one.log, code))
        else:
            missing = [step for step in missing if step.key not in one.reported]
            _with_reason(missing, "failed", "its process ended without a word about it")
        self._done(missing)

    def _last_words(self, log: Path, code: int) -> str:
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        lines = log.read_text(errors="replace").strip().splitlines()
        words = lines[-1] if lines else f"exit status {code}"
        return words.replace(f"{ROOT}/", "")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With the compilers that it may have started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _first_startable(waiting: Sequence[Job], running: Sequence[_Running]) -> Job | None:
    busy = {one.job.lane for one in running}
    return next((job for job in waiting if job.lane not in busy), None)


def _with_reason(steps: list[Step], status: str, reason: str) -> list[Step]:
    for step in steps:
        step.status, step.reason = status, reason  # type: ignore[assignment]
    return steps
