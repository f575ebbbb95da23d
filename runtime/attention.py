"""Which attention may be asked for, and what the environment asks for."""

import os
from typing import Literal, get_args

# "auto" is the fastest that can run; "standard" the reference's arithmetic; the others are for
# CUDA: the package flash-attn-3 (for Hopper), flash-attn, the engine library's own flash kernel,
# its memory-efficient one.
Attention = Literal["auto", "flash-attn-3", "flash-attn", "flash", "memory-efficient", "standard"]
ATTENTION_CHOICES: tuple[str, ...] = get_args(Attention)

V1_ATTENTION_VARIABLES = ("ESM2_V1_ATTENTION", "VIRNUCPRO_V1_ATTENTION")


def default_attention() -> Attention:
    """``"standard"`` where the environment asks for the reference's arithmetic."""
    asked = any(
        os.environ.get(variable, "").strip().lower() in ("1", "true", "yes", "on")
        for variable in V1_ATTENTION_VARIABLES
    )
    return "standard" if asked else "auto"
