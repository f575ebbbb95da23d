"""The card's ceiling: matrix products on a warm card, in the process of the contenders."""

import statistics
import time
from typing import Any

import torch

from benchmarks.processes import Worker

# Large enough that every card is full, small enough that a slow one takes half a second.
SIZE = 8192
REPEATS = 20
# A cold card clocks higher than one that has worked for as long as this, so before each reading.
BURN_S = 1.5


class CardLimit(Worker):
    """Answers as ``benchmarks.limit`` does: FLOP/s of products in bfloat16.

    Random numbers, not zeros: cards draw less power for those and clock higher.
    """

    def __init__(self) -> None:
        self._a, self._b = (
            torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2)
        )
        self._out = torch.empty_like(self._a)
        self.started = {
            "product": f"bfloat16, {SIZE:,} wide, median of {REPEATS} after {BURN_S:g} s of work"
        }

    def ask(self, what: str, **fields: Any) -> dict[str, Any]:
        """The rate of this moment, of a card that is warm."""
        started = time.perf_counter()
        while time.perf_counter() - started < BURN_S:
            for _ in range(REPEATS):
                torch.mm(self._a, self._b, out=self._out)
            torch.cuda.synchronize()
        return {"matrix_rate": self._rate()}

    def close(self) -> None:
        """Gives the memory back."""
        del self._a, self._b, self._out

    def _rate(self) -> float:
        milliseconds = []
        for _ in range(REPEATS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            torch.mm(self._a, self._b, out=self._out)
            end.record()
            end.synchronize()
            milliseconds.append(start.elapsed_time(end))
        return 2 * SIZE**3 / (statistics.median(milliseconds) / 1000)
