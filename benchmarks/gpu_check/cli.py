"""The command: plan, gates side by side, benchmarks alone, reports."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import click
import msgspec
import torch

from benchmarks.gpu_check import html, results
from benchmarks.gpu_check.machine import describe
from benchmarks.gpu_check.plan import (
    DTYPES,
    Job,
    Model,
    models_of,
    stages_of,
    steps_of,
    with_passed,
)
from benchmarks.gpu_check.results import SCHEMA_VERSION, Report, Step
from benchmarks.gpu_check.schedule import NO_TIME, Schedule
from benchmarks.gpu_check.summary import is_passed
from benchmarks.gpu_check.terminal import table
from runtime.interruption import orderly_end
from runtime.staging import staging
from runtime.threads import usable_cores

FAILED, NOT_POSSIBLE = 1, 2
# Builds work on CPUs for the most part: so many cores each, and so many of them at once.
CORES_A_BUILD, MAX_BUILDS = 4, 4
# What a benchmark may take of the time that is left, unless it is the last of its stage, and how
# many times that before it is killed.
BENCHMARK_SHARE, OVERTIME = 0.5, 1.5
# Of a benchmark's time, for its process to begin, and for the profile after its rounds.
RESERVE_S = 20.0


@dataclass
class Check:
    """One run: its report is written anew after every step, so that nothing loses it."""

    report: Report
    out: Path
    work: Path
    born: float = field(default_factory=time.perf_counter)

    def run(
        self, models: Sequence[Model], dtypes: Sequence[str], pack_tokens: Sequence[int]
    ) -> None:
        """Everything that the time allows."""
        device = self.report.machine.device
        logs = self.out / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        schedule = Schedule(self.work, logs, self._note)
        budget = 60 * self.report.minutes
        self.report.steps = steps_of(models, dtypes, device)
        self._write()
        at_once = max(1, min(MAX_BUILDS, usable_cores() // CORES_A_BUILD))
        for stage in stages_of(models, dtypes, pack_tokens, device):
            deadline = self.born + stage.until * budget
            if any(job.kind == "benchmark" for job in stage.jobs):
                self._measure(schedule, stage.jobs, deadline, stage.at_most * budget)
            else:
                schedule.run(stage.jobs, 1 if stage.is_alone else at_once, deadline)

    def _measure(
        self, schedule: Schedule, jobs: Sequence[Job], deadline: float, at_most: float
    ) -> None:
        """Benchmarks, with the engines that have passed the gate by now."""
        for number, planned in enumerate(jobs, start=1):
            job = with_passed(planned, self.report.steps)
            left = min(at_most, deadline - time.perf_counter())
            if reason := _why_not(job, left):
                self._note([msgspec.structs.replace(step, reason=reason) for step in job.steps()])
                continue
            share = left if number == len(jobs) else BENCHMARK_SHARE * left
            timed = msgspec.structs.replace(job, seconds=max(0.0, share - RESERVE_S))
            schedule.run([timed], 1, min(deadline, time.perf_counter() + OVERTIME * share))

    def _note(self, steps: list[Step]) -> None:
        places = {step.key: place for place, step in enumerate(self.report.steps)}
        for step in steps:
            place = places[step.key]
            before, self.report.steps[place] = self.report.steps[place], step
            if (before.status, before.reason) == (step.status, step.reason):
                continue  # more of the same benchmark
            self._say(
                f"{step.kind} {step.name}: {step.status}{': ' if step.reason else ''}{step.reason}"
            )
        self._write()

    def _write(self) -> None:
        self.report.took_minutes = (time.perf_counter() - self.born) / 60
        results.write(self.report, self.out)
        html.write(self.report, self.out)

    def _say(self, line: str) -> None:
        click.echo(f"[{(time.perf_counter() - self.born) / 60:4.1f} min] {line}", err=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--models", default="8M,35M,150M,650M", help="Names, or paths of checkpoints.")
@click.option("--with-3b", is_flag=True, help="Also 3B; give it more --minutes.")
@click.option(
    "--device",
    default="cuda",
    type=click.Choice(["auto", "cuda", "cpu"]),
    help="cpu rehearses everything without a card; auto does so where there is none.",
)
@click.option("--dtypes", default=",".join(DTYPES), help="Of the engines.")
@click.option("--tokens", default="4096,16384,65536", help="Batch sizes that are tried for speed.")
@click.option("--minutes", default=10.0, type=click.FloatRange(min=0), help="What may be used.")
@click.option(
    "--out",
    default=Path("gpu-report"),
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the reports.",
)
def main(
    models: str, with_3b: bool, device: str, dtypes: str, tokens: str, minutes: float, out: Path
) -> None:
    """Prove and measure every engine of this machine's GPU; no network is needed.

    Exits with 0 if all that ran passed and something did, 1 if not, 2 if there is no card.
    """
    has_card = torch.cuda.is_available()
    if device == "cuda" and not has_card:
        click.echo(
            f"error: no card: PyTorch {torch.__version__} sees no GPU. Install a CUDA build of "
            "PyTorch and a driver, or rehearse with --device cpu",
            err=True,
        )
        sys.exit(NOT_POSSIBLE)
    names = _parts(models) + (["3B"] if with_3b else [])
    try:
        wanted = models_of(dict.fromkeys(names))
        pack_tokens = [int(part) for part in _parts(tokens)]
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    unknown = [dtype for dtype in _parts(dtypes) if dtype not in DTYPES]
    if unknown or not wanted or not pack_tokens:
        raise click.UsageError(
            f"give models, tokens, and dtypes of {', '.join(DTYPES)}; unknown: {unknown}"
        )
    report = Report(
        schema_version=SCHEMA_VERSION,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        machine=describe("cuda" if has_card and device != "cpu" else "cpu"),
        minutes=minutes,
    )
    out.mkdir(parents=True, exist_ok=True)
    with orderly_end(), staging(out.resolve() / "artifacts") as work:
        work.mkdir()
        try:
            Check(report, out, work).run(wanted, _parts(dtypes), pack_tokens)
        finally:
            click.echo(table(report))
            click.echo(f"{out / results.FILE_NAME}, {out / html.FILE_NAME}")
    sys.exit(0 if is_passed(report) else FAILED)


def _why_not(job: Job, left: float) -> str:
    if left <= 0:
        return NO_TIME
    return "" if job.engines else "no engine that had passed the gate was left to measure"


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
