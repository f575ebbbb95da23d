"""Faults of packs that are longer, larger or smaller than those in which all goes well."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporter.model import packed_forward
from exporter.model.packed_forward import PackedESM2, PackedSelfAttention
from exporter.model.spans import token_spans
from exporter.parity.prove.replaced import patched, replaced
from exporter.planted import Fault, GraphFault


def _positions(change: Callable[[Tensor], Tensor]) -> Callable[[PackedESM2], Any]:
    tables = packed_forward.rotary_tables
    return patched("rotary_tables", lambda positions, *rest: tables(change(positions), *rest))


def _scale_of_long_ones(packed: PackedESM2) -> Any:
    original = PackedSelfAttention.forward

    def scaled(
        self: PackedSelfAttention, x: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor,
        max_seqlen: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        # Both q and k by the root: their products by 1.02.
        factor = torch.where(cu_seqlens.diff().max() > 2048, 1.02**0.5, 1.0)
        return original(self, x, cos * factor, sin * factor, cu_seqlens, max_seqlen)

    return replaced(PackedSelfAttention, "forward", scaled)


def _wrong_token(is_wrong: Callable[[Tensor, Tensor], Tensor]) -> Callable[[PackedESM2], Any]:
    """Embeddings halved where ``is_wrong(index, T)``."""

    def embedding(input_ids: Tensor, table: Tensor) -> Tensor:
        ones = torch.ones_like(input_ids)
        wrong = is_wrong(ones.cumsum(0) - 1, ones.sum(0))
        return table[input_ids] * torch.where(wrong, 0.5, 1.0).to(table.dtype)[:, None]

    return lambda packed: replaced(F, "embedding", embedding)


def _many_proteins(packed: PackedESM2) -> Any:
    original = token_spans

    def spans(cu_seqlens: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        protein, start, end = original(cu_seqlens, tokens)
        return protein, torch.where(protein > 1000, start - 1, start), end

    return replaced(packed_forward, "token_spans", spans)


def size_faults() -> Iterable[Fault]:
    """Each with the pack that shows it."""
    long, many, block = ("beyond 2048",), ("16384 tokens",), ("4096 tokens",)
    planted: list[tuple[str, Callable[[PackedESM2], Any], tuple[str, ...]]] = [
        ("rotary tables of 1,280 rows", _positions(lambda p: p.clamp(max=1279)), long),
        ("positions counted in float16", _positions(lambda p: p.half().long()), long),
        ("softmax scale 2 % too large beyond 2,048", _scale_of_long_ones, long),
        ("spans of proteins beyond 1,000 off by one", _many_proteins, many),
        ("last token wrong beyond 12,000", _wrong_token(lambda i, t: (t > 12_000) & (i == t - 1)),
         many),
        ("first token wrong in multiples of 4,096",
         _wrong_token(lambda i, t: (t % 4096 == 0) & (i == 0)), block),
        ("a pack of one token wrong", _wrong_token(lambda i, t: t + i == 1), ("one token alone",)),
    ]  # fmt: skip
    return [GraphFault(name, "length and size", plant, packs=on) for name, plant, on in planted]
