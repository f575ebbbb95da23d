"""Passed or failed: an engine's error on every output of every pack against its budgets."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from exporter.parity.rules.budgets import OF_TASKS, Budget, budgets_for
from exporter.parity.rules.metrics import UNBOUNDED, ratio
from exporter.parity.rules.rows import Row
from exporter.parity.rules.task import TaskMetrics
from runtime.domain import Domain
from runtime.engine import EngineSpec
from runtime.manifest_schema import HEAD, ParityEntry

# The names of the checks that are exact: there is no number between right and wrong.
EVERYTHING_COMPARED = "every output is there, finite and comparable"
TOKENS = "token ids and boundaries are fair-esm's"
REPEATED = "the same answers again, in another order and to two threads at once"
ROTATED = "queries and keys are rotated in float32"
INTERNALS = "position_ids, cu_seqlens and max_seqlen inside the graph"
WEIGHTS = "weights are the checkpoint's, bit by bit"
# Of the reference, before there is an engine.
OWN_LOADER = "weights are what the format's own loader reads"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One rule at its worst place.

    Attributes:
        name: the budget's, or one of the exact checks.
        passed: everywhere; false too where nothing could be compared.
        measured: the worst value, or None for an exact check.
        limit: of the budget.
        sense: ``at most``, ``at least`` or ``exact``.
        margin: how many times over the limit; above 1 it failed. None for an exact check.
        where: the place of the worst value, or what is wrong.
        not_compared: what in the oracle's answers leaves nothing to compare, and what to do. It is
            neither a pass nor a failure, and never for a reason that lies in the engine.
    """

    name: str
    passed: bool
    measured: float | None = None
    limit: float | None = None
    sense: Literal["at most", "at least", "exact"] = "exact"
    margin: float | None = None
    where: str
    not_compared: str = ""

    @property
    def failed(self) -> bool:
        """Whether it speaks against the engine."""
        return not self.passed and not self.not_compared


class EngineVerdict(msgspec.Struct, frozen=True):
    """The verdict on one engine.

    Attributes:
        engine: its format.
        status: ``not measured`` is no pass.
        reason: why it was not measured, or the first failure in one line; empty if it passed.
        library, device, attention: where and how it ran.
        checks: every rule, at its worst place.
        tasks: task-level metrics, or None where nothing could be compared.
        eager_tasks: the same of eager fair-esm in the engine's dtype, for comparison.
        rows: every output of every pack.
    """

    engine: str
    status: Literal["passed", "failed", "not measured"]
    reason: str
    library: str = ""
    device: str = ""
    attention: str = ""
    checks: list[Check] = []
    tasks: TaskMetrics | None = None
    eager_tasks: TaskMetrics | None = None
    rows: list[Row] = []

    @property
    def worst_relative_l2(self) -> float:
        """Of all outputs of all packs, but for a head's (see ``rules.heads``)."""
        errors = [row.engine.relative_l2 if row.engine else UNBOUNDED for row in self._measured]
        return max(errors, default=UNBOUNDED)

    @property
    def worst_ratio_to_eager(self) -> float:
        """The same of their multiples of eager fair-esm's own."""
        return max((row.ratio for row in self._measured), default=UNBOUNDED)

    @property
    def _measured(self) -> list[Row]:
        return [row for row in self.rows if not row.not_compared and row.tensor != HEAD]

    def summary(self, packs: Mapping[str, tuple[int, int]]) -> ParityEntry:
        """For the manifest.

        Args:
            packs: proteins and tokens of each.
        """
        return ParityEntry(
            passed=self.status == "passed",
            worst_relative_l2=self.worst_relative_l2,
            worst_ratio_to_eager=self.worst_ratio_to_eager,
            packs=len(packs),
            domain=domain_of(self.rows, packs),
        )


def domain_of(rows: Iterable[Row], packs: Mapping[str, tuple[int, int]]) -> Domain:
    """The largest that was compared: ``packs`` says proteins and tokens of each."""
    return Domain(
        longest=max((row.longest for row in rows), default=0),
        tokens=max(tokens for _, tokens in packs.values()),
        proteins=max(proteins for proteins, _ in packs.values()),
    )


def verdict_of(
    spec: EngineSpec,
    num_layers: int,
    rows: Sequence[Row],
    tasks: TaskMetrics | None,
    eager_tasks: TaskMetrics | None,
    other_checks: Sequence[Check],
) -> EngineVerdict:
    """Measures what was compared against the budgets of the engine's dtype.

    Args:
        spec: of the engine.
        num_layers: of the model, which budgets depend on.
        rows: every output of every pack.
        tasks: over all packs; None where nothing could be compared.
        eager_tasks: the same of eager fair-esm in the engine's dtype.
        other_checks: what else was looked at.
    """
    budgets = budgets_for(spec.dtype, num_layers)
    incomparable = [
        f"{row.tensor} of pack {row.pack!r}: {row.problem}" for row in rows if row.problem
    ]
    by_number = [_of_rows(budget, rows, tasks) for budget in budgets]
    if all(check.margin is None for check in by_number):
        incomparable.append("nothing was compared")
    checks = [exact(EVERYTHING_COMPARED, incomparable), *other_checks, *by_number]
    failed = [check for check in checks if check.failed]
    return EngineVerdict(
        engine=spec.format,
        status="failed" if failed else "passed",
        reason=describe(failed[0]) + _of_eager(failed[0], budgets, eager_tasks) if failed else "",
        library=spec.library,
        device=spec.device,
        attention=spec.attention,
        checks=checks,
        tasks=tasks,
        eager_tasks=eager_tasks,
        rows=list(rows),
    )


def exact(name: str, problems: Sequence[str]) -> Check:
    """A check that has no number: passed if there is no problem."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    where = problems[0] + more if problems else ""
    return Check(name=name, passed=not problems, where=where)


def describe(check: Check) -> str:
    """One line for people."""
    if check.not_compared:
        return f"{check.name}: not compared: {check.not_compared}"
    if check.measured is None:
        return f"{check.name}: {check.where}"
    return (
        f"{check.name}: {check.measured:.3g} in {check.where}, expected {check.sense} "
        f"{check.limit:g}"
    )


def _of_eager(check: Check, budgets: Sequence[Budget], eager_tasks: TaskMetrics | None) -> str:
    """What the reference itself reaches in the engine's dtype: it may be the dtype that fails."""
    quantity = next((b.quantity for b in budgets if b.name == check.name), "")
    value = getattr(eager_tasks, quantity, None) if quantity in OF_TASKS else None
    return "" if value is None else f". Eager fair-esm in the engine's dtype: {value:.3g}"


def _of_rows(budget: Budget, rows: Sequence[Row], tasks: TaskMetrics | None) -> Check:
    if budget.quantity == "absolute_ratio":
        found = _absolute_ratios(rows)
    elif budget.quantity in OF_TASKS:
        value = getattr(tasks, budget.quantity, None)
        found = [] if value is None or tasks is None else [(value, _compared(budget, tasks))]
    else:
        measured = ((row.measured(budget), f"{row.tensor} of pack {row.pack!r}") for row in rows)
        found = [(value, where) for value, where in measured if value is not None]
    # A failure, unless the oracle's own answers leave nothing to compare.
    return worst(budget, found, tasks.not_compared.get(budget.quantity, "") if tasks else "")


def worst(budget: Budget, found: Sequence[tuple[float, str]], why: str = "") -> Check:
    """The check of a budget on what was measured, each with its place.

    Args:
        budget: that limits it.
        found: if nothing, the check fails.
        why: nothing was found, where that speaks not against the engine.
    """
    if not found:
        where = "" if why else "not compared"
        return Check(
            name=budget.name,
            passed=False,
            limit=budget.limit,
            sense=budget.sense,
            where=where,
            not_compared=why,
        )
    value, where = max(found, key=lambda pair: budget.margin(pair[0]))
    passed = all(budget.is_met(measured) for measured, _ in found)
    return Check(
        name=budget.name,
        passed=passed,
        measured=value,
        limit=budget.limit,
        sense=budget.sense,
        margin=budget.margin(value),
        where=where,
    )


def _compared(budget: Budget, tasks: TaskMetrics) -> str:
    match budget.quantity:
        case "top1_agreement_confident":
            return f"{tasks.confident_positions} positions"
        case "jensen_shannon_mean":
            return "every token"
    return f"{tasks.proteins} proteins"


def _absolute_ratios(rows: Sequence[Row]) -> list[tuple[float, str]]:
    """Of each tensor, over all packs: the largest error of one pack is a matter of luck."""
    compared = [
        (r.tensor, r.pack, r.engine, r.eager)
        for r in rows
        if r.engine and r.eager and r.tensor != HEAD
    ]
    found = []
    for tensor in dict.fromkeys(tensor for tensor, *_ in compared):
        errors = [(engine, eager, pack) for of, pack, engine, eager in compared if of == tensor]
        engine, pack = max((error.worst_absolute, pack) for error, _, pack in errors)
        eager = max(error.worst_absolute for _, error, _ in errors)
        found.append((float(ratio(engine, eager)), f"{tensor} of pack {pack!r}"))
    return found
