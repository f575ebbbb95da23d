"""The machine's ceiling: matrix products before and after it is warm."""

import statistics
import time
from typing import Any

import torch

from benchmarks.gpu_check.results import Rates
from benchmarks.processes import Worker

# Large enough that every card is full, small enough that a slow one takes half a second.
SIZES = {"cuda": 8192, "cpu": 1024}
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
REPEATS = 20
# A cold card clocks higher than one that has worked for some seconds.
BURN_S = {"cuda": 3.0, "cpu": 0.3}
# Before each reading among contenders, who keep it warm.
BURN_AGAIN_S = 1.5


class Products:
    """Products of random matrices; with zeros cards draw less power and clock higher."""

    def __init__(self, device: str):
        self._device, self._size = device, SIZES[device]
        shape = self._size, self._size
        self._a, self._b = (torch.randn(shape, device=device, dtype=DTYPES[device]) for _ in "ab")
        self._out = torch.empty_like(self._a)
        self.name = f"{str(DTYPES[device]).removeprefix('torch.')}, {self._size:,} wide"
        self._seconds()  # libraries start

    def burn(self, seconds: float) -> None:
        """Nothing but products for so long."""
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            self.rate()

    def rate(self) -> float:
        """FLOP/s of this moment."""
        return 2 * self._size**3 / statistics.median(self._seconds() for _ in range(REPEATS))

    def _seconds(self) -> float:
        if self._device == "cpu":
            started = time.perf_counter()
            torch.mm(self._a, self._b, out=self._out)
            return time.perf_counter() - started
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mm(self._a, self._b, out=self._out)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000


def cold_and_warm(device: str) -> Rates:
    """Of a machine that has not worked yet, and after ``BURN_S`` of products."""
    products = Products(device)
    cold = products.rate()
    products.burn(BURN_S[device])
    return Rates(products.name, cold, products.rate(), BURN_S[device])


class CardLimit(Worker):
    """Answers as ``benchmarks.limit`` does, in the process of the contenders."""

    def __init__(self) -> None:
        self._products = Products("cuda")
        how = f"median of {REPEATS} after {BURN_AGAIN_S:g} s of work"
        self.started = {"product": f"{self._products.name}, {how}"}

    def ask(self, what: str, **fields: Any) -> dict[str, Any]:
        """The rate of this moment, of a card that is warm."""
        self._products.burn(BURN_AGAIN_S)
        return {"matrix_rate": self._products.rate()}

    def close(self) -> None:
        """Gives the memory back."""
        del self._products
