"""What eager pipelines use by these names: positions in a pack, and flash-attn's varlen kernel."""

import warnings

import torch
from torch import Tensor

from exporter.model.spans import create_position_ids_packed
from runtime.ops.cuda import HALF_DTYPES, flash_attn_version, is_flash_attn_current

__all__ = [
    "FLASH_ATTN_AVAILABLE",
    "create_position_ids_packed",
    "flash_attn_varlen_func",
    "flash_attn_varlen_wrapper",
]

FLASH_ATTN_INSTALL = "pip install 'flash-attn>=2.6.0' --no-build-isolation"

try:
    from flash_attn import flash_attn_varlen_func

    FLASH_ATTN_AVAILABLE = True
except ImportError:
    flash_attn_varlen_func = None
    FLASH_ATTN_AVAILABLE = False

_version = flash_attn_version()
if FLASH_ATTN_AVAILABLE and _version is not None and not is_flash_attn_current(_version):
    warnings.warn(
        f"flash-attn {_version} is older than 2.6.0 and is not used. {FLASH_ATTN_INSTALL}",
        stacklevel=2,
    )


def flash_attn_varlen_wrapper(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    causal: bool = False,
    softmax_scale: float | None = None,
) -> Tensor:
    """flash-attn's ``flash_attn_varlen_func`` for self-attention, with its demands checked first.

    Args:
        q, k, v: ``[T, H, D]`` float16 or bfloat16 on one CUDA device.
        cu_seqlens: ``[N + 1]`` int32 on the same device.
        max_seqlen: length of the longest protein, in tokens.
        dropout_p: attention dropout; 0 at inference.
        causal: whether a token sees only those before it; ESM-2 never does.
        softmax_scale: multiplies the scores; ``D ** -0.5`` by default.

    Returns:
        ``[T, H, D]`` in the dtype of q.

    Raises:
        ImportError: flash-attn is not installed; the message holds the install line.
        RuntimeError: no CUDA GPU of compute capability >= 8.0.
        ValueError: wrong dtype or shape.
    """
    if not FLASH_ATTN_AVAILABLE:
        raise ImportError(f"flash-attn is not installed. Install it: {FLASH_ATTN_INSTALL}")
    if not torch.cuda.is_available():
        raise RuntimeError("flash-attn needs a CUDA GPU, and PyTorch sees none")
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        name = torch.cuda.get_device_name()
        raise RuntimeError(
            f"flash-attn needs compute capability >= 8.0 (Ampere), {name} has "
            f"{capability[0]}.{capability[1]}"
        )
    problems = _flash_input_problems(q, k, v, cu_seqlens)
    if problems:
        raise ValueError("; ".join(problems))
    out: Tensor = flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        dropout_p=dropout_p,
        softmax_scale=softmax_scale,
        causal=causal,
    )
    return out


def _flash_input_problems(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> list[str]:
    problems = []
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in HALF_DTYPES:
            problems.append(f"{name} must be float16 or bfloat16, got {x.dtype}")
        if x.ndim != 3:
            problems.append(f"{name} must be [T, H, D], got {list(x.shape)}")
    if not q.shape == k.shape == v.shape:
        problems.append(
            f"q, k, v must have one shape, got {list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        )
    if cu_seqlens.dtype != torch.int32:
        problems.append(f"cu_seqlens must be int32, got {cu_seqlens.dtype}")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        problems.append(f"cu_seqlens must be 1-D [N + 1], got {list(cu_seqlens.shape)}")
    return problems
