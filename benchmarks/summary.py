"""What follows from a run: medians, spreads, ratios taken round by round, the headline."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.contenders import EXTRACT
from benchmarks.results import Contender, GrowthPoint, ModelResult, WorkloadResult

EAGER = "fair_esm"
WRONG = "WRONG"


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Round by round: a shared machine drifts, and both of a round saw the same of it."""
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


def spread(values: Sequence[float]) -> float:
    """From the least to the greatest, as a share of the median."""
    return (max(values) - min(values)) / statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """``share`` in percent."""
    return float(np.percentile(np.asarray(values), share))


def limit_of(workload: WorkloadResult) -> list[float]:
    """Tokens/s that the machine's matrix rate allows, round by round."""
    return [rate * workload.tokens / workload.flops for rate in workload.matrix_rate]


def verdict_of(contender: Contender, errors: Sequence[float]) -> str:
    """``ok``, ``WRONG``, or ``not run`` with the reason."""
    if contender.not_run:
        return f"not run: {contender.not_run}"
    if not errors:
        return "not run: no round"
    return "ok" if max(errors) <= contender.max_relative_l2 else WRONG


@dataclass(frozen=True)
class Row:
    """One contender on one workload, for a table; numbers are None where it did not run."""

    name: str
    label: str
    kind: str
    verdict: str
    tokens_s: float | None = None
    spread: float | None = None
    of_limit: float | None = None
    of_eager: float | None = None
    max_tokens: int | None = None
    concurrency: int | None = None
    relative_l2: float | None = None


def rows_of(model: ModelResult, workload: WorkloadResult) -> list[Row]:
    """Peers first, then engines; everybody who was meant to run is there."""
    limits = limit_of(workload)
    eager = workload.timings.get(EAGER)
    rows = []
    for name, about in sorted(model.contenders.items(), key=lambda item: item[1].kind == "engine"):
        timing = workload.timings.get(name)
        if about.not_run or timing is None or not timing.tokens_s:
            rows.append(Row(name, about.label, about.kind, verdict_of(about, [])))
            continue
        can_compare = eager is not None and len(eager.tokens_s) == len(timing.tokens_s)
        rows.append(
            Row(
                name,
                about.label,
                about.kind,
                verdict_of(about, timing.relative_l2),
                statistics.median(timing.tokens_s),
                spread(timing.tokens_s),
                median_ratio(timing.tokens_s, limits),
                median_ratio(timing.tokens_s, eager.tokens_s) if eager and can_compare else None,
                timing.setting.max_tokens,
                timing.setting.concurrency,
                max(timing.relative_l2),
            )
        )
    return rows


@dataclass(frozen=True)
class Headline:
    """The best engine of a workload against the best peer, eager fair-esm, its script, the limit.

    A ratio is None where the other did not run or was wrong.
    """

    engine: str
    peer: str | None
    of_peer: float | None
    of_eager: float | None
    of_extract: float | None
    of_limit: float


def headline_of(model: ModelResult, workload: WorkloadResult) -> Headline | None:
    """None if no engine is right; those that do not compare with the peers do not count."""
    rows = [row for row in rows_of(model, workload) if row.verdict == "ok"]
    engines = [r for r in rows if r.kind == "engine" and model.contenders[r.name].in_headline]
    if not engines:
        return None
    best = max(engines, key=lambda row: row.tokens_s or 0)
    peer = _best_peer(model, rows)
    return Headline(
        engine=best.name,
        peer=peer,
        of_peer=_against(workload, rows, best.name, peer),
        of_eager=_against(workload, rows, best.name, EAGER),
        of_extract=_against(workload, rows, best.name, EXTRACT),
        of_limit=median_ratio(workload.timings[best.name].tokens_s, limit_of(workload)),
    )


def of_best_peer(model: ModelResult, workload: WorkloadResult, name: str) -> float | None:
    """Of one contender; None where it, or every peer, did not run or was wrong."""
    rows = [row for row in rows_of(model, workload) if row.verdict == "ok"]
    return _against(workload, rows, name, _best_peer(model, rows))


def _best_peer(model: ModelResult, rows: Sequence[Row]) -> str | None:
    peers = [r for r in rows if r.kind == "peer" and model.contenders[r.name].in_headline]
    return max(peers, key=lambda row: row.tokens_s or 0).name if peers else None


def _against(
    workload: WorkloadResult, rows: Sequence[Row], name: str, other: str | None
) -> float | None:
    if not {name, other} <= {row.name for row in rows}:
        return None
    one, two = workload.timings[name].tokens_s, workload.timings[str(other)].tokens_s
    return median_ratio(one, two) if len(one) == len(two) else None


def memory_growth(points: Sequence[GrowthPoint], base: int = 100_000) -> float | None:
    """Peak memory of the longest stream over that of ``base`` tokens; None without both."""
    at_base = [point for point in points if point.tokens == base]
    longest = max(points, key=lambda point: point.tokens, default=None)
    if not at_base or longest is None or longest.tokens <= base:
        return None
    return longest.peak_mb / at_base[0].peak_mb
