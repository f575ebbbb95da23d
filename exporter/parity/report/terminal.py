"""The lines of a parity report that matter, for a terminal."""

from collections import Counter
from collections.abc import Sequence

from exporter.parity.report.schema import Report
from exporter.parity.rules.verdict import Check, EngineVerdict, describe, domain_of


def summary(report: Report, grown: Sequence[str] = ()) -> list[str]:
    """About ten lines: each engine, its nearest limits, what is wrong, and the verdict."""
    proteins, tokens = map(sum, zip(*report.packs.values(), strict=True))
    domain = domain_of((row for v in report.engines for row in v.rows), report.packs)
    lines = [
        f"{report.artifact}, {report.dtype}: {len(report.packs)} packs, {proteins:,} proteins, "
        f"{tokens:,} tokens, against eager fair-esm in float64",
        f"  proven for proteins of up to {domain.longest:,} tokens, packs of up to "
        f"{domain.tokens:,} tokens and {domain.proteins:,} proteins"
        + (f"; seed {report.seed}" if report.seed else ""),
    ]
    for verdict in report.engines:
        lines += _engine(verdict)
    if report.faults:
        lines += _faults(report)
    lines += [f"  grown: {sentence}" for sentence in grown[:3]]
    if len(grown) > 3:
        lines.append(f"  grown: and {len(grown) - 3} more")
    return [*lines, "PASSED" if report.passed and not grown else "FAILED"]


def _one_line(verdict: EngineVerdict) -> str:
    """An engine's verdict."""
    if verdict.status == "not measured":
        return f"{verdict.engine}: NOT MEASURED: {verdict.reason}"
    status = verdict.status if verdict.status == "passed" else verdict.status.upper()
    line = f"{verdict.engine} ({verdict.library}, {verdict.device}): {status}"
    if not verdict.rows:
        return f"{line}: {verdict.reason}"
    return (
        f"{line}, worst relative L2 {verdict.worst_relative_l2:.1e}, "
        f"{verdict.worst_ratio_to_eager:.2f} x eager fair-esm's own"
    )


def _engine(verdict: EngineVerdict) -> list[str]:
    lines = [_one_line(verdict)]
    if verdict.status == "failed" and verdict.rows:
        lines.append(f"  {verdict.reason}")
    measured = [check for check in verdict.checks if check.margin is not None]
    nearest = sorted(measured, key=_margin, reverse=True)[:2]
    lines += [f"  {_numbers(check)}" for check in nearest]
    return lines + [f"  {describe(check)}" for check in verdict.checks if check.not_compared]


def _numbers(check: Check) -> str:
    return f"{check.name}: {check.measured:.3g} ({check.sense} {check.limit:g}), {check.where}" + (
        "" if check.passed else "  FAILED"
    )


def _faults(report: Report) -> list[str]:
    counts = Counter(fault.outcome for fault in report.faults)
    named = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    margins = [(f.margin, f) for f in report.faults if f.margin is not None]
    lines = [f"planted faults: {named}"]
    if margins:
        margin, fault = min(margins, key=lambda pair: pair[0])
        lines.append(
            f"  smallest margin by number: {margin:.3g} x over, {fault.fault} ({fault.engine}"
            + (", also rejected exactly)" if fault.exactly else ")")
        )
    lines += [
        f"  ACCEPTED: {fault.fault} ({fault.engine})"
        for fault in report.faults
        if fault.outcome == "accepted"
    ]
    return lines


def _margin(check: Check) -> float:
    return check.margin or 0.0
