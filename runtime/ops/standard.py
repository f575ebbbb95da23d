"""The reference's own attention arithmetic, one protein at a time, on any device."""

import torch
from torch import Tensor


def standard(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float
) -> Tensor:
    """Attention as fair-esm computes it: matmul, float32 softmax, cast, matmul.

    Source: fair-esm ``esm/multihead_attention.py:333-372``; q is scaled before the matmul.

    Args:
        q, k, v: ``[T, H, D]`` after rotary, any floating dtype.
        cu_seqlens: ``[N + 1]``; comes to the host.
        max_seqlen: not needed.
        softmax_scale: multiplies q.

    Returns:
        ``[T, H, D]`` in the dtype of q.
    """
    # float64 keeps float64: only the half precisions need the wider softmax.
    softmax_dtype = torch.promote_types(q.dtype, torch.float32)
    q = q * softmax_scale
    bounds = cu_seqlens.tolist()
    attended = []
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        query, key, value = (x[start:end].transpose(0, 1) for x in (q, k, v))
        scores = torch.bmm(query, key.transpose(1, 2))
        probabilities = torch.softmax(scores, dim=-1, dtype=softmax_dtype).to(q.dtype)
        attended.append(torch.bmm(probabilities, value).transpose(0, 1))
    return torch.cat(attended)
