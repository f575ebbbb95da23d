"""CUDA kernels of ``esm2::varlen_attention`` and the choice between them.

Each candidate says in sentences why it cannot run; the first without a reason is used.
All take q, k, v ``[T, H, D]`` after rotary, int32 ``cu_seqlens``, the host's ``max_seqlen`` and the
scale, and return ``[T, H, D]``.
"""

import functools
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.ops.standard import standard

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, float], Tensor]

MIN_FLASH_ATTN = (2, 6, 0)
HALF_DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Choice:
    """The kernel that will run, and why faster ones will not.

    Attributes:
        name: ``flash-attn 2.8.3``, ``torch flash``, ``memory-efficient`` or ``standard``.
        kernel: the function.
        passed_over: one sentence for each faster candidate.
    """

    name: str
    kernel: Kernel
    passed_over: tuple[str, ...]


def flash_attn_version() -> str | None:
    """The installed flash-attn version, or None. Does not import the package."""
    try:
        return importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        return None


def is_flash_attn_current(version: str) -> bool:
    """Whether ``version`` is at least 2.6.0, the oldest that this project relies on."""
    numbers = [int(part) for part in version.split("+")[0].split(".") if part.isdigit()]
    return tuple(numbers[:3]) >= MIN_FLASH_ATTN


@functools.cache
def choose_kernel(
    capability: tuple[int, int], dtype: torch.dtype, head_dim: int, requested: str = "auto"
) -> Choice:
    """The fastest kernel for a GPU of this compute capability, this dtype and head dim.

    Args:
        capability: as ``torch.cuda.get_device_capability`` gives it.
        dtype: of q, k, v.
        head_dim: D.
        requested: ``"auto"`` or ``"standard"``.
    """
    if requested == "standard":
        return Choice("standard", _standard, ("standard attention was asked for",))
    flash = _flash_reasons(capability, dtype, head_dim)
    candidates: list[tuple[str, Kernel, list[str]]] = [
        (f"flash-attn {flash_attn_version()}", _flash_attn, _flash_attn_reasons() + flash),
        ("torch flash", _torch_flash, flash),
        ("memory-efficient", _memory_efficient, _memory_efficient_reasons(dtype, head_dim)),
        ("standard", _standard, []),
    ]
    passed_over: list[str] = []
    for name, kernel, reasons in candidates:
        if not reasons:
            return Choice(name, kernel, tuple(passed_over))
        passed_over.append(f"{name.removesuffix(' None')}: {', '.join(reasons)}")
    raise AssertionError("the standard kernel has no reasons against it")


def _flash_attn_reasons() -> list[str]:
    version = flash_attn_version()
    if version is None:
        return ["not installed"]
    if not is_flash_attn_current(version):
        return ["older than 2.6.0"]
    try:
        import flash_attn  # noqa: F401
    except ImportError as error:  # built for another PyTorch, say
        return [f"cannot be imported ({error})"]
    return []


def _flash_reasons(capability: tuple[int, int], dtype: torch.dtype, head_dim: int) -> list[str]:
    reasons = []
    if capability < (8, 0):
        reasons.append(f"needs compute capability 8.0, got {capability[0]}.{capability[1]}")
    if dtype not in HALF_DTYPES:
        reasons.append(f"needs float16 or bfloat16, got {dtype}")
    if head_dim % 8 or head_dim > 256:
        reasons.append(f"needs a head dim that is a multiple of 8 up to 256, got {head_dim}")
    return reasons


def _memory_efficient_reasons(dtype: torch.dtype, head_dim: int) -> list[str]:
    reasons = []
    if dtype not in (*HALF_DTYPES, torch.float32):
        reasons.append(f"needs float32, float16 or bfloat16, got {dtype}")
    if head_dim % 4:
        reasons.append(f"needs a head dim that is a multiple of 4, got {head_dim}")
    return reasons


def _flash_attn(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    out: Tensor = flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, softmax_scale=softmax_scale
    )
    return out


def _torch_flash(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float
) -> Tensor:
    dropout_p, is_causal, return_debug_mask = 0.0, False, False
    out: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen,
        dropout_p, is_causal, return_debug_mask, scale=softmax_scale,
    )[0]  # fmt: skip
    return out


def _memory_efficient(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float
) -> Tensor:
    bias, dropout_p, no_mask, compute_log_sumexp = None, 0.0, 0, False
    out: Tensor = torch.ops.aten._efficient_attention_forward(
        q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), bias, cu_seqlens, cu_seqlens,
        max_seqlen, max_seqlen, dropout_p, no_mask, compute_log_sumexp, scale=softmax_scale,
    )[0]  # fmt: skip
    return out.squeeze(0)


def _standard(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float
) -> Tensor:
    return standard(q, k, v, cu_seqlens, softmax_scale)
