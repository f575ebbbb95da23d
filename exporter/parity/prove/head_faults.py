"""Faults that only a head which was trained on top can have."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from exporter.model import packed_forward
from exporter.model.heads import sequence_classification
from exporter.model.packed_forward import PackedESM2
from exporter.parity.prove.replaced import replaced
from exporter.planted import Fault, GraphFault, State, WeightsFault
from runtime.manifest_schema import Architecture, Manifest

WEIGHT, BIAS = "head.out_proj.weight", "head.out_proj.bias"
_OTHER_POOL = {"mean": "mean-with-eos", "mean-with-eos": "mean", "cls": "mean"}


def _needs_head(manifest: Manifest) -> str:
    return "" if manifest.head else "the artifact has no head"


def _needs_labels(manifest: Manifest) -> str:
    return _needs_head(manifest) or ("" if len(manifest.head.labels) > 1 else "it has one label")  # type: ignore[union-attr]


def _of_kind(kind: str) -> Any:
    def applies(manifest: Manifest) -> str:
        is_kind = manifest.head is not None and manifest.head.kind == kind
        return "" if is_kind else f"the artifact has no head of the kind {kind}"

    return applies


def _needs_pooling_probe(manifest: Manifest) -> str:
    return "" if manifest.head and manifest.head.pool else "no linear probe reads pooled vectors"


def _labels_swapped(state: State, architecture: Architecture) -> dict[str, Tensor]:
    return {name: torch.cat([state[name][:2].flip(0), state[name][2:]]) for name in (WEIGHT, BIAS)}


def _bias_zeroed(state: State, architecture: Architecture) -> dict[str, Tensor]:
    return {BIAS: torch.zeros_like(state[BIAS])}


def _second_token(packed: PackedESM2) -> Any:
    original = sequence_classification.first_tokens
    return replaced(
        sequence_classification,
        "first_tokens",
        lambda x, bounds: original(torch.cat([x[1:], x[:1]]), bounds),
    )


def _before_the_last_norm(packed: PackedESM2) -> Any:
    head: Any = packed.head
    original = type(head).forward

    def forward(self: Any, x: Tensor, cu_seqlens: Tensor) -> Any:
        norm = packed.emb_layer_norm_after
        return original(self, (x - norm.bias) / norm.weight, cu_seqlens)

    return replaced(type(head), "forward", forward)


def _probe_pools_otherwise(packed: PackedESM2) -> Any:
    original = packed_forward.pool_packed

    def pooling(x: Tensor, bounds: Tensor, how: str) -> Tensor:
        return original(x, bounds, _OTHER_POOL[how])

    return replaced(packed_forward, "pool_packed", pooling)


def head_faults() -> Iterable[Fault]:
    """In its graph and in its weights."""
    return [
        WeightsFault("two labels swapped", "head", _labels_swapped, applies=_needs_labels),
        WeightsFault("the head's bias zeroed", "head", _bias_zeroed, applies=_needs_head),
        GraphFault(
            "head reads the second token in place of <cls>", "head", _second_token,
            applies=_of_kind("sequence_classification"),
        ),
        GraphFault(
            "head reads what is before the last LayerNorm's scale", "head", _before_the_last_norm,
            applies=_needs_head,
        ),
        GraphFault(
            "probe reads vectors of another pooling", "head", _probe_pools_otherwise,
            applies=_needs_pooling_probe,
        ),
    ]  # fmt: skip
