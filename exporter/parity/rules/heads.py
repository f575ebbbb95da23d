"""What a head that was trained on top may be off by, in every dtype.

It may give a single number for each protein, and that may be near zero: of one pack neither its
relative error nor a quotient of two errors is a measure, for eager's own may be small by luck. So
each pack's worst error is taken, and all packs count.
"""

import math
from collections.abc import Iterable, Sequence

from exporter.parity.rules.budgets import Budget
from exporter.parity.rules.metrics import ratio
from exporter.parity.rules.rows import Row
from exporter.parity.rules.verdict import Check, worst
from runtime.manifest_schema import HEAD

# Units in the last place.
LAST_PLACE = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# Where training saturates a head, its tanh lets little of the trunk's rounding through, and what is
# left is the rounding of a single sum of E products: that of its order, which is the library's own.
# Measured for E of 320, on 6 packs: PyTorch, in several sums side by side, is off by half a unit in
# the last place of the head's largest number, ONNX Runtime, in one after another, by 2. That grows
# with the root of E. So eager's own error counts as sqrt(E) / 8 units at least; in half precision,
# whose products are summed in float32, as one.
SUMS = 8.0

OVER_ALL_PACKS = Budget(
    "head: worst errors of all packs, as a multiple of eager's own",
    "head_ratio",
    2.0,
    "at most",
    "as for every output; the root of the sum of the squares of each pack's worst error",
)
OF_A_PACK = Budget(
    "head: worst error of a pack, as a multiple of eager's worst of all packs",
    "head_worst",
    8.0,
    "at most",
    "of single numbers one may be several times another; a head that reads another token, or has "
    "two labels in each other's place, is off by its whole range",
)
HEAD_RULES = (OVER_ALL_PACKS, OF_A_PACK)


def head_checks(rows: Iterable[Row], largest: float, dtype: str, width: int) -> list[Check]:
    """The checks of ``HEAD_RULES``.

    Args:
        rows: of an engine, those of ``HEAD`` among them.
        largest: magnitude of the oracle's numbers over all packs.
        dtype: of the engine's outputs.
        width: E of the model.
    """
    units = max(1.0, math.sqrt(width) / SUMS) if dtype == "float32" else 1.0
    least = units * LAST_PLACE[dtype] * largest
    errors = [
        (row.engine.worst_absolute, max(row.eager.worst_absolute, least), row.pack)
        for row in rows
        if row.tensor == HEAD and row.engine and row.eager
    ]
    if not errors:
        return [worst(budget, []) for budget in HEAD_RULES]
    engine, eager = (_root(errors, side) for side in (0, 1))
    largest_error = max(eager_error for _, eager_error, _ in errors)
    each = [
        (float(ratio(error, largest_error)), f"{HEAD} of pack {pack!r}")
        for error, _, pack in errors
    ]
    return [
        worst(OVER_ALL_PACKS, [(float(ratio(engine, eager)), f"{HEAD} of {len(errors)} packs")]),
        worst(OF_A_PACK, each),
    ]


def _root(errors: Sequence[tuple[float, float, str]], side: int) -> float:
    return math.hypot(*(float(error[side]) for error in errors))
