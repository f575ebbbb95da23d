"""What an engine may differ by. One row each: the value, the reason, the measurement behind it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """One rule.

    Attributes:
        name: as the report shows it.
        limit: the measured value must not be above it.
        reason: why this number.
    """

    name: str
    limit: float
    reason: str


# Two orders of rounding in one dtype differ by less than a factor of two from the truth; this is
# how flash-attention tests itself (tests/test_flash_attn.py). Measured for 8M in float32 on 15
# packs: 0.7 to 1.2.
RELATIVE_TO_EAGER = Budget(
    "relative L2 / eager fair-esm's own",
    2.0,
    "an engine may round differently from eager PyTorch, but not worse than twice as badly",
)

# Measured for 8M with synthetic weights: rounding 3e-7 to 5e-7. The mildest planted fault that a
# float32 output can show, tanh for erf GELU, gives 1e-4.
FLOAT32_SHALLOW = Budget(
    "relative L2, float32, up to 12 layers",
    2e-6,
    "float32 rounding through 12 layers stays below 1e-6; the mildest fault is 50 times larger",
)
FLOAT32_ANY_DEPTH = Budget(
    "relative L2, float32, any depth",
    2e-5,
    "rounding grows with depth; the mildest fault is still 5 times larger",
)


def budgets_for(dtype: str, num_layers: int) -> tuple[Budget, ...]:
    """The rules for every output tensor of an engine.

    Raises:
        ValueError: no budget was ever measured for this dtype.
    """
    if dtype != "float32":
        raise ValueError(f"no parity budget for {dtype}: it has not been measured")
    ceiling = FLOAT32_SHALLOW if num_layers <= 12 else FLOAT32_ANY_DEPTH
    return (RELATIVE_TO_EAGER, ceiling)
