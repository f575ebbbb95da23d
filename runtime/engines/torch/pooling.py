"""``runtime.pooling`` for tensors that should not leave their device."""

import torch
from torch import Tensor

from runtime.pooling import Pool, check_per_protein


def pool_tensor(rows: Tensor, cu_seqlens: Tensor, how: Pool) -> Tensor:
    """Pools ``[T, E]`` into ``[N, E]`` as ``runtime.pooling.pool`` does, sums in float64 too.

    Means of bfloat16 are float32, as the host's are.

    Args:
        rows: ``[T, E]`` on any device.
        cu_seqlens: ``[N + 1]`` int32 on the same.
        how: not ``"none"``.

    Raises:
        InputError: ``how`` is ``"none"`` or unknown.
    """
    check_per_protein(how)
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    if how == "cls":
        return rows[starts]
    is_single = ends - starts == 1
    kept = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    kept.scatter_(0, starts, is_single)
    if how == "mean":
        kept.scatter_(0, ends - 1, is_single)
    skipped = torch.where(is_single, 0, 1 if how == "mean-with-eos" else 2)
    lengths = ends - starts
    residues = torch.where(kept.unsqueeze(1), rows, 0.0).double()
    # unsafe: without a check of the lengths, for which the host would wait.
    sums = torch.segment_reduce(residues, "sum", lengths=lengths, axis=0, unsafe=True)
    means = sums / (lengths - skipped).unsqueeze(1)
    return means.to(torch.float32 if rows.dtype == torch.bfloat16 else rows.dtype)
