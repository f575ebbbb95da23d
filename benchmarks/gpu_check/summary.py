"""What follows from a report: the aims, and whether all is well."""

from dataclasses import dataclass

from benchmarks.gpu_check.results import Report, Status
from benchmarks.results import ModelResult
from benchmarks.summary import WRONG, headline_of, rows_of

# What the best engine of 650M and 3B is to reach in half precision.
AIM_OF_MATRIX_RATE = 0.60
AIM_OF_EAGER = 3.0
AIMED_MODELS = ("650M", "3B")


@dataclass(frozen=True)
class Aim:
    """One aim, what was reached, and ``met``, ``not met``, or why it is not judged."""

    model: str
    what: str
    wanted: float
    reached: float | None
    verdict: str


def aims_of(report: Report) -> list[Aim]:
    """Of the models that have aims, by the fastest engine through ``embed`` in half precision."""
    found = []
    for step in report.steps:
        if step.kind != "benchmark" or step.model not in AIMED_MODELS or step.benchmark is None:
            continue
        best = headline_of(step.benchmark, step.benchmark.workloads["mixed"])
        for what, wanted, reached in (
            ("share of the matrix rate", AIM_OF_MATRIX_RATE, best and best.of_limit),
            ("x eager fair-esm", AIM_OF_EAGER, best and best.of_eager),
        ):
            found.append(Aim(step.name, what, wanted, reached, _verdict(report, wanted, reached)))
    return found


def status_of(found: ModelResult) -> tuple[Status, str]:
    """Of a benchmark, by its engines: peers may be missing, a pack may be too large for a card."""
    rows = [row for row in rows_of(found, found.workloads["mixed"]) if row.kind == "engine"]
    for row in rows:
        if row.verdict == WRONG:
            return "failed", f"{row.label}: wrong: relative L2 {row.relative_l2:.1e}"
        reason = found.contenders[row.name].not_run
        if reason and not reason.startswith("out of memory"):
            return "failed", f"{row.label}: {reason}"
    if not any(row.tokens_s for row in rows):
        reasons = [found.contenders[row.name].not_run or "no round was measured" for row in rows]
        return "not run", next(iter(reasons), "there was no engine to measure")
    return "passed", ""


def is_passed(report: Report) -> bool:
    """All that ran passed, and at least one engine did."""
    gates = [step for step in report.steps if step.kind == "gate"]
    return any(step.status == "passed" for step in gates) and not any(
        step.status == "failed" for step in report.steps
    )


def counts(report: Report) -> dict[str, int]:
    """Steps by status."""
    statuses = [step.status for step in report.steps]
    return {status: statuses.count(status) for status in ("passed", "failed", "not run")}


def _verdict(report: Report, wanted: float, reached: float | None) -> str:
    if report.machine.device == "cpu":
        return "not judged: a rehearsal"
    if reached is None:
        return "not measured"
    return "met" if reached >= wanted else "not met"
