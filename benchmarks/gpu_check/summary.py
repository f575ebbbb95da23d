"""What follows from a report: rows of a benchmark, the aims, and whether all is well."""

import statistics
from dataclasses import dataclass

from benchmarks.gpu_check.results import Benchmark, Report, Timing
from benchmarks.summary import median_ratio, spread

# What the best engine of 650M and 3B is to reach in half precision.
AIM_OF_MATRIX_RATE = 0.60
AIM_OF_EAGER = 3.0
AIMED_MODELS = ("650M", "3B")
HALF_DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True)
class Row:
    """One contender, for a table; numbers are None where they were not measured."""

    timing: Timing
    tokens_s: float | None = None
    spread: float | None = None
    of_eager: float | None = None
    of_hugging_face: float | None = None
    of_matrix_rate: float | None = None


@dataclass(frozen=True)
class Aim:
    """One aim, what was reached, and ``met``, ``not met``, or why it is not judged."""

    model: str
    what: str
    wanted: float
    reached: float | None
    verdict: str


def rows_of(benchmark: Benchmark) -> list[Row]:
    """In the order of the timings."""
    peers = {timing.role: timing for timing in benchmark.timings if timing.tokens_s}
    return [
        Row(
            timing,
            statistics.median(timing.tokens_s),
            spread(timing.tokens_s),
            _against(timing, peers.get("fair-esm")),
            _against(timing, peers.get("hugging face")),
            statistics.median(timing.tokens_s)
            * benchmark.flops
            / benchmark.tokens
            / benchmark.matrix_rate,
        )
        if timing.tokens_s
        else Row(timing)
        for timing in benchmark.timings
    ]


def aims_of(report: Report) -> list[Aim]:
    """Of the models that have aims, by the fastest engine through ``embed`` in half precision."""
    found = []
    for step in report.steps:
        if step.kind != "benchmark" or step.model not in AIMED_MODELS or step.benchmark is None:
            continue
        best = max(
            (
                row
                for row in rows_of(step.benchmark)
                if row.timing.role == "engine"
                and row.timing.dtype in HALF_DTYPES
                and not row.timing.problem
            ),
            key=lambda row: row.tokens_s or 0.0,
            default=None,
        )
        share, times = (best.of_matrix_rate, best.of_eager) if best else (None, None)
        for what, wanted, reached in (
            ("share of the matrix rate", AIM_OF_MATRIX_RATE, share),
            ("x eager fair-esm", AIM_OF_EAGER, times),
        ):
            found.append(Aim(step.model, what, wanted, reached, _verdict(report, wanted, reached)))
    return found


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


def _against(timing: Timing, other: Timing | None) -> float | None:
    if other is None or len(other.tokens_s) != len(timing.tokens_s):
        return None
    return median_ratio(timing.tokens_s, other.tokens_s)


def _verdict(report: Report, wanted: float, reached: float | None) -> str:
    if report.machine.device == "cpu":
        return "not judged: a rehearsal"
    if reached is None:
        return "not measured"
    return "met" if reached >= wanted else "not met"
