"""What the machine could do: all FLOPs over its float32 matrix rate, measured in the same run."""

import json
import sys
import time
from collections.abc import Sequence

from runtime.manifest import Architecture

# The cost of one exponential in FLOPs: a degree-5 polynomial with range reduction, vectorised.
FLOPS_PER_EXPONENTIAL = 20


def flops(
    architecture: Architecture, lengths: Sequence[int], per_exponential: int = FLOPS_PER_EXPONENTIAL
) -> float:
    """Of the linears (2 a weight and token), attention (4 L^2 D a head), and exponentials.

    Args:
        architecture: the model's.
        lengths: of the proteins, in tokens.
        per_exponential: 0 leaves them out, as a GPU does, which has units of their own for them.
    """
    width, layers = architecture.embed_dim, architecture.num_layers
    tokens, squares = sum(lengths), sum(length**2 for length in lengths)
    linears = layers * 24 * width**2 + 2 * width * (width + architecture.vocab_size)
    attention = 4 * width + per_exponential * architecture.num_heads
    return float(tokens * linears + layers * squares * attention)


def matrix_rate() -> float:
    """Best float32 FLOP/s of a square matrix product on all cores, of ten."""
    import torch

    size = 2048
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


if __name__ == "__main__":
    # A process of its own, for the same reason as the contenders'; it answers as they do.
    print("{}", flush=True)
    for _ in sys.stdin:
        print(json.dumps({"matrix_rate": matrix_rate()}), flush=True)
