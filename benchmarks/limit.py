"""What the machine could do: all FLOPs over its matrix rate, measured in the same run."""

import json
import sys
import time
from collections.abc import Sequence

from runtime.manifest_schema import Architecture

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
    squares = sum(length**2 for length in lengths)
    attention = 4 * architecture.embed_dim + per_exponential * architecture.num_heads
    linears = linear_flops(architecture, sum(lengths))
    return linears + float(architecture.num_layers * squares * attention)


def linear_flops(architecture: Architecture, tokens: int) -> float:
    """Of the linears alone, the LM head's among them."""
    width, layers = architecture.embed_dim, architecture.num_layers
    return float(tokens * (layers * 24 * width**2 + 2 * width * (width + architecture.vocab_size)))


SIZE, REPEATS = 2_048, 10
PRODUCT = f"float32, {SIZE:,} wide, best of {REPEATS}"


def matrix_rate() -> float:
    """FLOP/s of ``PRODUCT`` on all cores."""
    import torch

    a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2 * SIZE**3 / min(seconds)


if __name__ == "__main__":
    # A process of its own, for the same reason as the contenders'; it answers as they do.
    print(json.dumps({"product": PRODUCT}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"matrix_rate": matrix_rate()}), flush=True)
