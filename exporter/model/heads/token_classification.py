"""``EsmForTokenClassification``: numbers for each token, BOS and EOS included.

Source: transformers 5, models/esm/modeling_esm.py; its dropout is off. In training the labels of
BOS and EOS are -100, so what a head says of them means nothing.
"""

from torch import Tensor, nn

from exporter.model.heads.head import Head
from runtime.manifest_schema import HeadEntry

# transformers' names, behind "classifier", -> ours.
RENAMES = {"": "out_proj"}


class TokenClassification(Head):
    """A linear on every token."""

    def __init__(self, entry: HeadEntry, width: int):
        super().__init__(entry)
        self.out_proj = nn.Linear(width, self.num_labels)

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """``[T, E]`` to ``[T, C]``."""
        return self.out_proj(x)  # type: ignore[no-any-return]
