"""CUDA kernels of ``esm2::varlen_attention`` and the choice between them.

Each candidate says in sentences why it cannot run; the first without a reason is used.
None of them but ``standard`` waits for the card. All take q, k, v ``[T, H, D]`` after rotary, int32
``cu_seqlens``, the host's ``max_seqlen`` and the scale, and return ``[T, H, D]``.
"""

import functools
import importlib
import importlib.metadata

import torch
from torch import Tensor

from runtime.attention import Attention
from runtime.errors import UnsupportedError
from runtime.ops.choice import Choice, Kernel
from runtime.ops.standard import standard

MIN_FLASH_ATTN = (2, 6, 0)
HALF_DTYPES = (torch.float16, torch.bfloat16)


def flash_attn_version(distribution: str = "flash-attn") -> str | None:
    """The installed version of flash-attn or flash-attn-3, or None. Does not import it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_flash_attn_current(version: str) -> bool:
    """Whether ``version`` is at least 2.6.0, the oldest that this project relies on."""
    numbers = [int(part) for part in version.split("+")[0].split(".") if part.isdigit()]
    return tuple(numbers[:3]) >= MIN_FLASH_ATTN


@functools.cache
def choose_kernel(
    capability: tuple[int, int], dtype: torch.dtype, head_dim: int, requested: Attention = "auto"
) -> Choice:
    """The fastest kernel for a GPU of this compute capability, this dtype and head dim.

    Args:
        capability: as ``torch.cuda.get_device_capability`` gives it.
        dtype: of q, k, v.
        head_dim: D.
        requested: ``"auto"``, or the one to take.

    Raises:
        UnsupportedError: the one that was asked for cannot run; says why.
    """
    flash = _flash_reasons(capability, dtype, head_dim)
    efficient = _memory_efficient_reasons(dtype, head_dim)
    # Where its kernels cannot run the package is not even imported.
    hopper = _hopper_reasons(capability, head_dim) or _flash_attn_3_reasons()
    candidates: dict[Attention, tuple[str, Kernel, list[str]]] = {
        "flash-attn-3": (_with_version("flash-attn-3"), _flash_attn_3, hopper + flash),
        "flash-attn": (_with_version("flash-attn"), _flash_attn, _flash_attn_reasons() + flash),
        "flash": ("torch flash", _torch_flash, flash),
        "memory-efficient": ("memory-efficient", _memory_efficient, efficient),
        "standard": ("standard", standard, []),
    }
    passed_over: list[str] = []
    for key, (name, kernel, reasons) in candidates.items():
        if requested not in ("auto", key):
            continue
        if not reasons:
            asked = f"attention {key!r} was asked for"
            return Choice(name, kernel, tuple(passed_over) if requested == "auto" else (asked,))
        passed_over.append(f"{name}: {', '.join(reasons)}")
    raise UnsupportedError(f"attention {requested!r} cannot run here: {passed_over[0]}")


def _with_version(distribution: str) -> str:
    return " ".join(filter(None, (distribution, flash_attn_version(distribution))))


def _flash_attn_reasons() -> list[str]:
    version = flash_attn_version()
    if version is not None and not is_flash_attn_current(version):
        return ["older than 2.6.0"]
    return _package_reasons("flash-attn", "flash_attn")


def _flash_attn_3_reasons() -> list[str]:
    return _package_reasons("flash-attn-3", "flash_attn_interface")


def _package_reasons(distribution: str, module: str) -> list[str]:
    if flash_attn_version(distribution) is None:
        return ["not installed"]
    try:
        importlib.import_module(module).flash_attn_varlen_func  # noqa: B018
    except Exception as error:  # built for another PyTorch, or half installed
        return [f"cannot be imported ({error})"]
    return []


def _hopper_reasons(capability: tuple[int, int], head_dim: int) -> list[str]:
    reasons = []
    if capability[0] != 9:
        reasons.append(f"needs compute capability 9.0, got {capability[0]}.{capability[1]}")
    if head_dim < 64:  # its smallest tile; narrower heads would be filled up with zeros
        reasons.append(f"needs a head dim of at least 64, got {head_dim}")
    return reasons


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


def _flash_attn_3(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float
) -> Tensor:
    from flash_attn_interface import flash_attn_varlen_func

    out: Tensor | tuple[Tensor, Tensor] = flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, softmax_scale=softmax_scale
    )
    # Older builds give the log-sum-exp beside it.
    return out[0] if isinstance(out, tuple) else out


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
