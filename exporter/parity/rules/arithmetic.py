"""Whether an engine in half precision rounds where it must, and nowhere else.

Rounding of a whole model hides what rounds twice. So each step is measured alone, against what its
exact result rounded once would miss.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from exporter.parity.answers import Floats
from exporter.parity.rules.budgets import Budget

# Measured for good engines, 2 to 33 layers, on CPUs and an H100: 1.00 to 1.01; 1.10 where sums of
# linears are rounded in five parts. One LayerNorm in half precision, or its scale and shift alone,
# in any one layer: 1.2 to 2.5.
STEP = Budget(
    "rounding of each step, as a multiple of rounding its result once",
    "step_rounding",
    1.1,
    "at most",
    "LayerNorm, GELU and sums of linears are in float32 at least, so that each rounds its result "
    "and nothing before it; measured on weights that show each step apart",
)
# Kernels round what softmax gives, in an order of their own: 0.94 to 1.18.
SOFTMAX_STEP = Budget(
    "rounding of attention over many tokens, as a multiple of rounding its result once",
    "step_rounding",
    1.5,
    "at most",
    "the same, where a kernel may round softmax once more; its queries and keys round too",
)
SUMS_ON_A_CARD = Budget(
    "rounding of sums of linears on a card, as a multiple of rounding their result once",
    "step_rounding",
    2.5,
    "at most",
    "cuBLAS may add parts of a sum in half precision, which PyTorch allows it by default",
)
# Measured on 15 packs: 1.000 with the native kernel, up to 1.02 where PyTorch rounds softmax. A
# softmax in half precision 1.04 to 1.5: short proteins show it, as few tokens average nothing out.
ATTENTION = Budget(
    "rounding of attention, as a multiple of rounding its exact result once",
    "attention_rounding",
    1.05,
    "at most",
    "of q, k and v as each layer's attention got them; scores, softmax and their sums are float32",
)
ATTENTION_ON_A_CARD = Budget(
    "rounding of attention on a card, as a multiple of rounding its exact result once",
    "attention_rounding",
    2.0,
    "at most",
    "flash-attention rounds softmax to half precision, as its tensor cores take it: up to 1.5",
)
OF_STEPS = (STEP, SOFTMAX_STEP, SUMS_ON_A_CARD, ATTENTION, ATTENTION_ON_A_CARD)
# Of a product in float32 that is rounded to half precision, beside that rounding.
FLOAT32_ROUNDING = 4e-6

Attended = Sequence[NDArray[np.float64]]


def attention_rounding(attended: Attended, cu_seqlens: NDArray[np.int32], dtype: str) -> float:
    """An attention's error against float64 of what it got, over that of rounding float64 once.

    Args:
        attended: q, k, v and the result, ``[T, H, D]``.
        cu_seqlens: ``[N + 1]`` of the pack.
        dtype: of the engine.

    Returns:
        0 where rounding loses nothing and neither does the attention.
    """
    error = rounding = 0.0
    for start, end in zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True):
        q, k, v, result = (x[start:end].swapaxes(0, 1) for x in attended)
        scores = q @ k.swapaxes(1, 2) / q.shape[-1] ** 0.5
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        exact = weights / weights.sum(-1, keepdims=True) @ v
        error += float(((result - exact) ** 2).sum())
        rounding += float(((rounded(exact, dtype) - exact) ** 2).sum())
    return multiple(error**0.5, rounding**0.5)


def step_rounding(got: Floats, exact: Floats, once: Floats) -> float:
    """How much an engine rounds, as a multiple of ``once``; columns count alike: ``[T, C]`` each.

    What differs from ``once`` adds to the error of ``once``, though it may cancel it by chance: so
    numbers rounded to the wrong neighbour show, however close they were to the middle.

    Args:
        got: by an engine.
        exact: in float64.
        once: float64, in which each step's result is rounded.

    Returns:
        1 where the engine rounds just as ``once`` does.
    """
    size = np.linalg.norm(exact, axis=0)
    apart, rounding = (
        float(((np.linalg.norm(x.astype(np.float64) - y, axis=0) / size) ** 2).sum())
        for x, y in ((got, once), (once, exact))
    )
    return float(np.hypot(1.0, multiple(apart**0.5, rounding**0.5)))


def rotation_problem(
    got: Floats, x: Floats, positions: NDArray[np.int64], inv_freq: NDArray[np.float32], dtype: str
) -> str:
    """Where queries or keys are not those of float32 tables, rounded once; empty if they are.

    Args:
        got: ``[T, H, D]``, rotated by an engine.
        x: ``[H, D]``, what it rotated, for every token the same.
        positions: ``[T]``.
        inv_freq: ``[D / 2]``.
        dtype: of the engine.
    """
    # As float32 has them: an angle of hundreds of radians is rounded before its cosine.
    angles = (positions.astype(np.float32)[:, None] * inv_freq).astype(np.float64)[:, None]
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = np.split(x.astype(np.float64), 2, axis=-1)
    exact = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    size = np.tile(np.hypot(first, second), 2)
    allowed = spacing(exact, dtype) / 2 + FLOAT32_ROUNDING * size
    excess = np.abs(got - exact) / allowed
    if excess.max() <= 1:  # which NaN is not
        return ""
    token, head, column = np.unravel_index(excess.argmax(), excess.shape)
    return (
        f"position {positions[token]}, head {head + 1}, column {column + 1} is "
        f"{got[token, head, column]:.6g}, expected {exact[token, head, column]:.6g}, rounded once"
    )


def attention_budget(device: str) -> Budget:
    """The one that holds where an engine runs."""
    return ATTENTION if device == "cpu" else ATTENTION_ON_A_CARD


def rounded(x: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """To the nearest number of ``dtype``, ties to even."""
    step = spacing(x, dtype)
    nearest: NDArray[np.float64] = np.round(x / step) * step
    return nearest


def spacing(x: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """From each number to the next of ``dtype``, by its binary exponent."""
    # float32 is asked for where a manifest says so of an engine that computes in half precision.
    smallest_of = {"float32": (24, -149), "float16": (11, -24), "bfloat16": (8, -133)}
    digits, smallest = smallest_of[dtype]
    exponent = np.frexp(x)[1] - digits
    found: NDArray[np.float64] = np.exp2(np.maximum(exponent, smallest).astype(np.float64))
    return found


def multiple(error: float, rounding: float) -> float:
    """``error / rounding``; 0 where both are 0."""
    return error / max(rounding, np.finfo(np.float64).tiny) if error else 0.0
