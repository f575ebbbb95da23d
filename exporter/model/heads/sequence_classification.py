"""``EsmForSequenceClassification``: numbers for each protein, of its ``<cls>``.

Source: transformers 5, models/esm/modeling_esm.py, ``EsmClassificationHead``; its dropout is off.
"""

import torch
from torch import Tensor, nn

from exporter.model.heads.head import Head
from runtime.manifest_schema import HeadEntry

# transformers' names, behind "classifier.", -> ours.
RENAMES = {"dense": "dense", "out_proj": "out_proj"}


class SequenceClassification(Head):
    """Dense, tanh, and a linear, on the first token of each protein."""

    def __init__(self, entry: HeadEntry, width: int):
        super().__init__(entry)
        self.dense = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, self.num_labels)

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """``[T, E]`` to ``[N, C]``."""
        return self.out_proj(torch.tanh(self.dense(first_tokens(x, cu_seqlens))))  # type: ignore[no-any-return]


def first_tokens(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """``[T, E]`` to ``[N, E]``."""
    return x[cu_seqlens[:-1].long()]
