"""``esm2::add_contacts``: one layer's share of the contact head, whose maps are not kept.

Importing this module defines the op, with a kernel in PyTorch's own ops for every device; the
native library (``runtime.ops.varlen_attention.use_native``) registers its CPU kernel over it.
"""

import torch
from torch import Tensor

NAME = "esm2::add_contacts"
SCHEMA = (
    "(Tensor logits, Tensor q, Tensor k, Tensor cu_seqlens, float softmax_scale, Tensor is_kept,"
    " Tensor weight) -> Tensor"
)
# Where the native kernel hands over what Python is to compute.
IN_PYTHON_NAME = f"{NAME}_python"
# Numbers of the maps that are made at once: 64 MB in float32.
MAPS_AT_ONCE = 1 << 24


def in_torch(
    logits: Tensor, q: Tensor, k: Tensor, cu_seqlens: Tensor, softmax_scale: float, is_kept: Tensor,
    weight: Tensor,
) -> Tensor:  # fmt: skip
    """``logits`` and one layer's share, protein by protein, a few heads at a time.

    fair-esm's contact head (esm/modules.py:317) is a logistic regression over all heads' maps A of
    attention among residues, made symmetric and corrected by their average product. Of a layer it
    adds the sum over heads of ``w (A + A^T - r r^T / s)``; r are a map's row sums and column sums,
    s is the sum of r.

    Args:
        logits: ``[P]``, of the layers before: pairs i <= j of each protein's n residues, row by
            row; P is the sum of n (n + 1) / 2. A protein's first and last token are no residues.
        q, k: ``[T, H, D]`` after rotary.
        cu_seqlens: ``[N + 1]``; comes to the host.
        softmax_scale: multiplies the scores.
        is_kept: ``[T]`` bool; attention of and to other tokens counts as 0.
        weight: ``[H]``, of each head's map.

    Returns:
        ``[P]`` in the dtype of ``logits``.
    """
    bounds = cu_seqlens.tolist()
    shares = []
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        length = max(0, end - start - 2)
        share = logits.new_zeros(length, length)
        residues = slice(start + 1, start + 1 + length)
        kept = is_kept[residues].to(logits.dtype)
        heads = max(1, MAPS_AT_ONCE // max(1, length * (length + 2)))
        for first in range(0, q.shape[1] if length else 0, heads):
            some = slice(first, first + heads)
            query = q[residues, some].to(logits.dtype).transpose(0, 1) * softmax_scale
            key = k[start:end, some].to(logits.dtype).transpose(0, 1)
            maps = torch.softmax(query @ key.transpose(1, 2), dim=-1)[..., 1:-1]
            maps = maps * kept.unsqueeze(-1) * kept
            sums = maps.sum(-1) + maps.sum(-2)
            factors = weight[some].to(logits.dtype)
            total = torch.einsum("h,hij->ij", factors, maps)
            scale = factors / sums.sum(-1)
            share += total + total.T - torch.einsum("h,hi,hj->ij", scale, sums, sums)
        upper = torch.ones(length, length, dtype=torch.bool, device=logits.device).triu()
        shares.append(share[upper])
    return logits + torch.cat(shares)


def _fake(
    logits: Tensor, q: Tensor, k: Tensor, cu_seqlens: Tensor, softmax_scale: float, is_kept: Tensor,
    weight: Tensor,
) -> Tensor:  # fmt: skip
    return torch.empty_like(logits)


for _name in (NAME, IN_PYTHON_NAME):
    torch.library.define(_name, SCHEMA, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(_name, "default", in_torch)
    torch.library.register_fake(_name, _fake)
