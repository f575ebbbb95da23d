"""The CPU kernel of ``esm2::varlen_attention``, in PyTorch's own ops."""

from collections.abc import Iterator

import torch
from torch import Tensor


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float
) -> Tensor:
    """PyTorch's fused attention, protein by protein: blocked, no ``L x L`` matrix.

    A loop, because one masked call over the whole pack was measured 27 times slower.

    Args:
        q, k, v: ``[T, H, D]`` after rotary.
        cu_seqlens: ``[N + 1]``.
        max_seqlen: not needed.
        softmax_scale: multiplies the scores.

    Returns:
        ``[T, H, D]`` in the dtype of q.
    """
    out = torch.empty(q.shape, dtype=q.dtype)
    for start, count, length in _runs_of_equal_length(cu_seqlens):
        rows = slice(start, start + count * length)
        query, key, value = (
            x[rows].view(count, length, *q.shape[1:]).transpose(1, 2) for x in (q, k, v)
        )
        attended = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, scale=softmax_scale
        )
        out[rows] = attended.transpose(1, 2).reshape(count * length, *q.shape[1:])
    return out


def _runs_of_equal_length(cu_seqlens: Tensor) -> Iterator[tuple[int, int, int]]:
    """Yields ``(start, count, length)`` for neighbouring proteins of one length.

    Packs are sorted by length, so equally short proteins stand together, and one batched call
    replaces many tiny ones.
    """
    lengths = cu_seqlens.diff().tolist()
    start = first = 0
    for i, length in enumerate(lengths):
        if i + 1 == len(lengths) or lengths[i + 1] != length:
            count = i + 1 - first
            yield start, count, length
            start += count * length
            first = i + 1
