"""What packing needs besides the model: where each token stands, and flash-attn's varlen kernel."""

import warnings

import torch
from torch import Tensor

from runtime.ops.cuda import HALF_DTYPES, flash_attn_version, is_flash_attn_current

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


def token_spans(cu_seqlens: Tensor, num_tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each token its protein, and where that protein starts and ends.

    Written per token and without arithmetic on ``[N]``-sized tensors: ``torch.export`` would
    specialise those to N >= 2 and silently exclude packs of one protein.

    Args:
        cu_seqlens: ``[N + 1]`` int32 or int64, valid (see ``create_position_ids_packed``).
        num_tokens: ``[T]``, any integer tensor of the pack's length, for its shape and device.

    Returns:
        ``protein_index``, ``start``, ``end``: each ``[T]`` int64.
    """
    bounds = cu_seqlens.long()
    zeros = torch.zeros_like(num_tokens, dtype=torch.int64)
    # One longer than the pack, because the last bound is T itself.
    marks = torch.cat([zeros, zeros[:1]]).scatter(0, bounds, 1)
    protein_index = marks.cumsum(0)[:-1] - 1
    return protein_index, bounds[protein_index], bounds[protein_index + 1]


def create_position_ids_packed(cu_seqlens: Tensor) -> Tensor:
    """Positions within each protein: ``[0, 3, 7, 10]`` gives ``[0,1,2, 0,1,2,3, 0,1,2]``.

    Args:
        cu_seqlens: ``[N + 1]`` int32 or int64, starting at 0, strictly increasing.

    Returns:
        ``[T]`` int64 on the device of ``cu_seqlens``.

    Raises:
        ValueError: ``cu_seqlens`` is not as above; the message names the place.
    """
    check_cu_seqlens(cu_seqlens)
    positions = torch.arange(int(cu_seqlens[-1]), device=cu_seqlens.device)
    _, start, _ = token_spans(cu_seqlens, positions)
    return positions - start


def check_cu_seqlens(cu_seqlens: Tensor) -> None:
    """Raises ValueError, naming the place, unless ``cu_seqlens`` bounds at least one protein."""
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        raise ValueError(
            f"cu_seqlens must be 1-D [N + 1] with N >= 1, got {list(cu_seqlens.shape)}"
        )
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0:
        raise ValueError(f"cu_seqlens must start at 0, got cu_seqlens[0] = {bounds[0]}")
    for i in range(1, len(bounds)):
        if bounds[i] <= bounds[i - 1]:
            raise ValueError(
                "cu_seqlens must be strictly increasing, got "
                f"cu_seqlens[{i - 1}] = {bounds[i - 1]}, cu_seqlens[{i}] = {bounds[i]}"
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
