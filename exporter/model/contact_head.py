"""Contacts between residues as part of the packed forward, from fair-esm's own contact head."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from runtime.ops import contacts  # noqa: F401  registers the op

# Its name here is where the proof of the gate puts another in its place.
OP = torch.ops.esm2.add_contacts


@torch.jit.script
def _scripted_zeros(cu_seqlens: Tensor, num_pairs: Tensor) -> Tensor:
    # Scripted, because torch.jit.trace would bake the number that .item() gives while tracing.
    return torch.zeros(int(num_pairs), dtype=torch.float32, device=cu_seqlens.device)


class PackedContactHead(nn.Module):
    """fair-esm's ``ContactPredictionHead`` (esm/modules.py:317), layer by layer.

    A pair's logit is a sum over layers, so one number for each pair is kept, and no map.
    """

    def __init__(self, head: Any, num_layers: int, head_dim: int):
        super().__init__()
        self.regression: nn.Linear = head.regression
        self.eos_idx: int = head.eos_idx
        self.num_layers = num_layers
        self.softmax_scale = head_dim**-0.5

    def empty(self, cu_seqlens: Tensor) -> Tensor:
        """``[P]`` zeros: pairs i <= j of each protein's residues (see ``esm2::add_contacts``)."""
        residues = (cu_seqlens[1:] - cu_seqlens[:-1] - 2).clamp(min=0).long()
        num_pairs = (residues * (residues + 1) // 2).sum()
        if is_tracing():
            return _scripted_zeros(cu_seqlens, num_pairs)  # type: ignore[no-any-return]
        # float32 at least, whatever the model is in.
        dtype = torch.promote_types(self.regression.weight.dtype, torch.float32)
        return torch.zeros(num_pairs.item(), dtype=dtype, device=cu_seqlens.device)  # type: ignore[arg-type]

    def add(
        self, logits: Tensor, depth: int, q: Tensor, k: Tensor, cu_seqlens: Tensor,
        input_ids: Tensor,
    ) -> Tensor:  # fmt: skip
        """``logits`` and the share of layer ``depth``, from 1 on, with these queries and keys."""
        # A residue in the place of which <eos> stands has no contacts, esm/modules.py:341.
        return OP(  # type: ignore[no-any-return]
            logits, q, k, cu_seqlens, self.softmax_scale, input_ids != self.eos_idx,
            self.weight_of(depth).to(logits.dtype),
        )  # fmt: skip

    def weight_of(self, depth: int) -> Tensor:
        """``[H]``, of the maps of layer ``depth``, from 1 on."""
        return self.regression.weight.view(self.num_layers, -1)[depth - 1]

    def forward(self, logits: Tensor) -> Tensor:
        """``[P]`` to probabilities ``[P, 1]``."""
        return torch.sigmoid(logits + self.regression.bias.to(logits.dtype)).unsqueeze(1)
