"""The shapes of ESM-2 (layers, embed dim, heads) and the dtypes that it is built in."""

from typing import Any

from exporter.errors import CheckpointError

Shape = tuple[int, int, int]

# What an artifact's weights and outputs may be.
DTYPES = ("float32", "float16", "bfloat16")

# fair-esm README, "Available models": layers, embed dim, heads.
ARCHITECTURES: dict[str, Shape] = {
    "esm2_t6_8M_UR50D": (6, 320, 20),
    "esm2_t12_35M_UR50D": (12, 480, 20),
    "esm2_t30_150M_UR50D": (30, 640, 20),
    "esm2_t33_650M_UR50D": (33, 1280, 20),
    "esm2_t36_3B_UR50D": (36, 2560, 40),
    "esm2_t48_15B_UR50D": (48, 5120, 40),
}


def known_architecture(name: str) -> Shape:
    """Raises CheckpointError unless fair-esm has a model of this name."""
    if name not in ARCHITECTURES:
        raise CheckpointError(f"unknown model {name!r}, expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def architecture_name(shape: Shape) -> str:
    """fair-esm's name of the shape, or one that says what it is."""
    by_shape = {known: name for name, known in ARCHITECTURES.items()}
    return by_shape.get(shape, "esm2_t{}_{}w_{}h".format(*shape))


def checked_shape(num_layers: Any, embed_dim: Any, num_heads: Any) -> Shape:
    """Raises ValueError unless these are the sizes of some ESM-2."""
    sizes = num_layers, embed_dim, num_heads
    if not all(isinstance(size, int) and size > 0 for size in sizes) or embed_dim % num_heads:
        raise ValueError(f"layers, embed dim and heads are {sizes}")
    if embed_dim // num_heads % 2:
        raise ValueError(f"head dim {embed_dim // num_heads} is odd, rotary positions need pairs")
    return sizes
