"""``parity.html``: the report for people, one file that opens offline."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from exporter.parity.report import plots
from exporter.parity.report.schema import EVERY_ENGINE, FaultVerdict, Report
from exporter.parity.rules.budgets import Budget
from exporter.parity.rules.metrics import UNBOUNDED
from exporter.parity.rules.rows import Row
from exporter.parity.rules.verdict import Check
from exporter.templates import environment as templates

FILE_NAME = "parity.html"


def render(report: Report) -> str:
    """The whole page."""
    environment = templates()
    environment.filters |= {
        "count": "{:,}".format,
        "limit": _limit,
        "number": _number,
        "near_one": _near_one,
        "optional_number": _optional_number,
        "share": _share,
        "times": _times,
    }
    return environment.get_template("parity.html.j2").render(
        report=report,
        summary=_summary(report),
        problems=_problems(report),
        checks=_checks(report),
        budgets={budget.name: budget for budget in report.budgets},
        faults=_faults(report.faults),
        planted_in={fault.engine for fault in report.faults},
        every_engine=EVERY_ENGINE,
        length_plots=plots.error_by_length(report),
        layer_plot=plots.error_by_layer(report),
        domain_plot=plots.domain(report),
        not_drawn=_not_drawn(report),
        over_budget=lambda verdict, row: _over_budget(plots.budgets_of(report, verdict), row),
    )


def _summary(report: Report) -> list[str]:
    """The verdict in sentences."""
    proteins = sum(count for count, _ in report.packs.values())
    tokens = sum(count for _, count in report.packs.values())
    status = Counter(verdict.status for verdict in report.engines)
    measured = status["passed"] + status["failed"]
    sentences = [
        f"Over {_count(len(report.packs), 'pack')} ({_count(proteins, 'protein')}, "
        f"{_count(tokens, 'token')}), {status['passed']} of {_count(measured, 'measured engine')} "
        f"passed; {status['not measured']} not measured."
    ]
    silent = {check.name for v in report.engines for check in v.checks if check.not_compared}
    if silent:
        sentences.append(f"{_count(len(silent), 'rule')} had nothing to compare, see Budgets.")
    outcome = Counter(fault.outcome for fault in report.faults)
    if not report.faults:
        return [*sentences, "No faults were planted."]
    planted = outcome["rejected"] + outcome["accepted"]
    sentences.append(f"{outcome['rejected']} of {_count(planted, 'planted fault')} rejected")
    if outcome["hidden"]:
        sentences[-1] += (
            f"; {outcome['hidden']} more hidden by {report.dtype} rounding, rejected in float32"
        )
    if outcome["does not apply"]:
        sentences[-1] += f"; {outcome['does not apply']} not applicable"
    if outcome["not run"]:
        sentences[-1] += f"; {outcome['not run']} not run"
    return [*sentences[:-1], sentences[-1] + "."]


def _problems(report: Report) -> list[str]:
    """Why the report failed; empty if it passed."""
    if report.passed:
        return []
    problems = [f"{v.engine}: {v.reason}" for v in report.engines if v.status == "failed"]
    if all(verdict.status == "not measured" for verdict in report.engines):
        problems.append("no engine was measured, and that is no pass")
    problems += [
        f"{fault.engine}: the planted fault {fault.fault!r} was accepted"
        for fault in report.faults
        if fault.outcome == "accepted"
    ]
    return problems


def _checks(report: Report) -> dict[str, dict[str, Check]]:
    """By name and engine, exact checks first."""
    found: dict[str, dict[str, Check]] = defaultdict(dict)
    for verdict in report.engines:
        for check in verdict.checks:
            found[check.name][verdict.engine] = check
    return found | {budget.name: found[budget.name] for budget in report.budgets}


def _faults(faults: Iterable[FaultVerdict]) -> dict[str, dict[str, dict[str, FaultVerdict]]]:
    """By group, name and engine."""
    found: dict[str, dict[str, dict[str, FaultVerdict]]] = defaultdict(lambda: defaultdict(dict))
    for fault in faults:
        found[fault.group][fault.fault][fault.engine] = fault
    return found


def _not_drawn(report: Report) -> int:
    rows = [row for verdict in report.engines for row in verdict.rows]
    return sum(not plots.can_draw(row.engine) for row in rows)


def _over_budget(budgets: Iterable[Budget], row: Row) -> list[str]:
    """The budgets that this one output breaks."""
    measured = ((budget, row.measured(budget)) for budget in budgets)
    return [b.name for b, value in measured if value is not None and not b.is_met(value)]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _number(value: float, digits: int = 3) -> str:
    """As ``1.18e-6``, ``0.0132``, ``1.39`` or ``190,000``."""
    if value >= UNBOUNDED:
        return "unbounded"
    if value >= 1e9 or 0 < value < 1e-3:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    rounded = float(f"{value:.{digits}g}")
    whole = rounded == 0 or rounded >= 10 ** (digits - 1)
    return f"{rounded:,.0f}" if whole else f"{rounded:#.{digits}g}"


def _limit(value: float) -> str:
    """As it was written: ``2e-6``, ``0.9995`` or ``2``."""
    return f"{value:g}".replace("e-0", "e-")


def _optional_number(value: float | None) -> str:
    return "none" if value is None else _number(value)


def _near_one(value: float | None) -> str:
    """An agreement or a cosine, as ``0.99985``, ``1`` or ``1 - 5.1e-13``."""
    if value is None:
        return "none"
    if 0 < 1 - value < 1e-4:
        return f"1 \N{MINUS SIGN} {_number(1 - value, 2)}"
    return f"{min(value, 1.0):.5g}"


def _times(margin: float) -> str:
    """Before "over": ``190,000 x``."""
    # A budget's limit divides an unbounded error.
    if margin >= UNBOUNDED / 1e3:
        return "unboundedly"
    return f"{_number(margin, 2)} \N{MULTIPLICATION SIGN}"


def _share(margin: float) -> str:
    """How much of a limit is used."""
    if margin > 1:
        return f"{_times(margin)} over the limit"
    percent = "< 0.1" if 0 < margin < 1e-3 else _number(100 * margin, 2)
    return f"{percent} % of the limit"
