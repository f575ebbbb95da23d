"""Which kernel backs ``esm2::varlen_attention``, and why."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

# q, k, v [T, H, D] after rotary, cu_seqlens [N + 1], max_seqlen, softmax_scale; returns [T, H, D].
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, float], Tensor]


@dataclass(frozen=True)
class Choice:
    """The kernel that will run, and why faster ones will not.

    Attributes:
        name: such as ``flash-attn 2.8.3``, ``torch flash``, ``native (avx2)``, ``standard``.
        kernel: the function.
        passed_over: one sentence for each faster candidate, or that it was asked for.
        is_native: the kernel is that of the loaded library, which needs no Python to be called.
    """

    name: str
    kernel: Kernel
    passed_over: tuple[str, ...] = ()
    is_native: bool = False
