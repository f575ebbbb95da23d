"""A linear model that was fitted on embeddings: pooled ones of proteins, or those of residues."""

from torch import Tensor, nn

from exporter.model import packed_forward
from exporter.model.heads.head import Head
from runtime.manifest_schema import HeadEntry


class LinearProbe(Head):
    """A linear on pooled vectors, or on every token where ``entry.pool`` is None."""

    def __init__(self, entry: HeadEntry, width: int):
        super().__init__(entry)
        self.out_proj = nn.Linear(width, self.num_labels)

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """``[T, E]`` to ``[N, C]`` or ``[T, C]``."""
        if self.entry.pool is not None:
            x = packed_forward.pool_packed(x, cu_seqlens, self.entry.pool)
        return self.out_proj(x)  # type: ignore[no-any-return]
