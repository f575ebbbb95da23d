"""The machine's ceiling: the best of several matrix products, measured in the same process."""

import torch

from benchmarks import limit

# Large enough that every card is full, small enough that a slow one takes half a second.
SIZE = 8192
REPEATS = 10


def matrix_rate(device: str) -> tuple[float, str]:
    """FLOP/s and the product that gave it: bfloat16 on a card, float32 on a CPU (a rehearsal).

    Random numbers, not zeros: cards draw less power for those and clock higher.
    """
    if device == "cpu":
        return limit.matrix_rate(), "float32 on the CPU, 2,048 wide"
    a, b = (torch.randn(SIZE, SIZE, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        torch.mm(a, b)
    milliseconds = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mm(a, b)
        end.record()
        end.synchronize()
        milliseconds.append(start.elapsed_time(end))
    return 2 * SIZE**3 / (min(milliseconds) / 1000), f"bfloat16, {SIZE:,} wide, best of {REPEATS}"
