"""``esm2::rotary``: rotary positions in one pass on a card, where PyTorch's own ops take six.

Importing this module defines the op. TorchScript engines call it on CUDA alone: AOTInductor fuses
those ops itself, and a forward on a CPU must not come back to Python.
"""

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from runtime.errors import cause

logger = logging.getLogger(__name__)

NAME = "esm2::rotary"
SCHEMA = "(Tensor x, Tensor cos, Tensor sin) -> Tensor"

# x [T, H, D], cos and sin [T, 1, D]; returns [T, H, D].
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def in_torch(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary in PyTorch's own ops, on any device.

    Args:
        x: ``[T, H, D]``, any floating dtype.
        cos, sin: ``[T, 1 or H, D]``, float32 at least; the sine of the first half of D is negative.

    Returns:
        ``[T, H, D]``, computed in the tables' dtype and rounded once to that of x.
    """
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([second, first], dim=-1) * sin).to(x.dtype)


def warn_unless_fused() -> None:
    """Says what the card that is current loses, where the fused kernel cannot run on it."""
    _, reason = _on_card()
    if reason:
        logger.warning(
            "rotary positions run in PyTorch's own ops, which takes longer: Triton cannot run here "
            "(%s). It comes with PyTorch for CUDA, and needs a C compiler and a folder that it can "
            "write (TRITON_CACHE_DIR)",
            reason,
        )


@functools.cache
def _on_card() -> tuple[Kernel, str]:
    """The kernel for CUDA, tried there, and why it is not the fused one."""
    try:
        from runtime.ops.rotary_triton import rotary

        one = torch.ones(1, 1, 2, device="cuda")
        rotary(one, one, one)
    # No Triton, no compiler, nowhere to write: each fails in a way of its own.
    except Exception as error:
        return in_torch, cause(error)
    return rotary, ""


def _rotary_on_cuda(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    kernel, _ = _on_card()
    return kernel(x, cos, sin)


torch.library.define(NAME, SCHEMA, tags=torch.Tag.pt2_compliant_tag)
torch.library.impl(NAME, "default", in_torch)
torch.library.impl(NAME, "cuda", _rotary_on_cuda)
torch.library.register_fake(NAME, lambda x, cos, sin: torch.empty_like(x))
