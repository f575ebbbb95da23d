"""The machine's ceiling: the median of matrix products on a warm card, in the same process."""

import statistics
import time

import torch

from benchmarks import limit

# Large enough that every card is full, small enough that a slow one takes half a second.
SIZE = 8192
REPEATS = 20
# A cold card clocks higher than one that has worked for as long as this.
BURN_S = 3.0


def matrix_rate(device: str) -> tuple[float, str]:
    """FLOP/s and the product that gave it: bfloat16 on a card, float32 on a CPU (a rehearsal).

    Random numbers, not zeros: cards draw less power for those and clock higher.
    """
    if device == "cpu":
        return limit.matrix_rate(), "float32 on the CPU, 2,048 wide"
    a, b = (torch.randn(SIZE, SIZE, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    cold = _rate(a, b, out)
    torch.cuda.synchronize()
    started = time.perf_counter()
    while time.perf_counter() - started < BURN_S:
        for _ in range(REPEATS):
            torch.mm(a, b, out=out)
        torch.cuda.synchronize()
    warm = _rate(a, b, out)
    what = (
        f"bfloat16, {SIZE:,} wide, median of {REPEATS} after {BURN_S:g} s of work; "
        f"{cold / 1e12:.0f} TFLOP/s before"
    )
    return warm, what


def _rate(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> float:
    milliseconds = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mm(a, b, out=out)
        end.record()
        end.synchronize()
        milliseconds.append(start.elapsed_time(end))
    return 2 * SIZE**3 / (statistics.median(milliseconds) / 1000)
