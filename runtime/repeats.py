"""Whether an engine answers the same again: in another order, and to two threads at once.

What depends on an earlier pack, on a buffer that two callers share, or on who comes first shows in
no single run.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from runtime.engine import Engine, Outputs
from runtime.packing import PackedBatch

# Cards add in an order of their own (atomics): what float16 rounds to its neighbour is no fault.
RELATIVE_L2_ON_A_CARD = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}

First = tuple[PackedBatch, Outputs]


def problems(engine: Engine, first: Mapping[str, First], rounds: int) -> list[str]:
    """Which packs got other answers than at first, in sentences; each pack once.

    Args:
        engine: that gave the first answers, one pack after the other.
        first: packs with their answers, by name.
        rounds: of each of the two threads.
    """
    names = list(first)
    with ThreadPoolExecutor(2) as threads:
        again = partial(_again, engine, first)
        found = list(threads.map(again, (names * rounds, names[::-1] * rounds)))
        # Runs of one length can pass each other every time: here two begin at one moment.
        for two in zip(names, names[::-1], strict=True):
            found += threads.map(again, ([name] for name in two))
    return list(dict.fromkeys(problem for one in found for problem in one))


def _again(engine: Engine, first: Mapping[str, First], names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        batch, before = first[name]
        if not _is_same(engine, engine.run(batch), before):
            found.append(f"pack {name!r} gets other answers when it is run again")
    return found


def _is_same(engine: Engine, again: Outputs, before: Outputs) -> bool:
    if engine.spec.device == "cpu":
        return all(
            np.array_equal(again.tensors[name], x, equal_nan=True)
            for name, x in before.tensors.items()
        )
    limit = RELATIVE_L2_ON_A_CARD[engine.spec.dtype]
    return all(
        np.linalg.norm(again.tensors[name].astype(np.float64) - x) <= limit * np.linalg.norm(x)
        for name, x in before.tensors.items()
    )
