"""From the gate's verdict on a planted fault: what rejected it, and by how much."""

import msgspec

from exporter.parity.report.schema import FaultVerdict
from exporter.parity.rules.budgets import OVER_ALL_PACKS, budgets_for
from exporter.parity.rules.heads import OVER_ALL_PACKS as OF_ALL_HEADS
from exporter.parity.rules.verdict import Check, EngineVerdict, describe


def decisive(judged: EngineVerdict) -> list[Check]:
    """The failed checks that would fail with any more packs too.

    Faults run on a few packs: what is judged over all packs together does not count.
    """
    over_all_packs = {
        budget.name for dtype in ("float32", "float16", "int8") for budget in budgets_for(dtype, 1)
        if budget.quantity in OVER_ALL_PACKS
    }  # fmt: skip
    over_all_packs.add(OF_ALL_HEADS.name)
    failed = [check for check in judged.checks if check.failed]
    if not judged.checks:
        failed = [Check(name="the engine loads", passed=False, where=judged.reason)]
    return [check for check in failed if check.name not in over_all_packs]


def rejected(found: FaultVerdict, failed: list[Check]) -> FaultVerdict:
    """Names the budget with the largest margin, and every exact check."""
    found = msgspec.structs.replace(
        found,
        outcome="rejected",
        exactly=[describe(check) for check in failed if check.sense == "exact"],
        rules=[check.name for check in failed],
    )
    budgets = [check for check in failed if check.margin is not None]
    if not budgets:
        return found
    worst = max(budgets, key=lambda check: check.margin or 0.0)
    return msgspec.structs.replace(
        found, by=worst.name, measured=worst.measured, limit=worst.limit, margin=worst.margin
    )
