"""Faults that half precision's own rounding hides: a step in the dtype that belongs in float32."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporter.model import packed_forward
from exporter.model.packed_forward import PackedESM2
from exporter.parity.prove.replaced import patched, replaced
from exporter.planted import Fault, GraphFault, RuntimeFault
from runtime.manifest_schema import Manifest
from runtime.ops import varlen_attention
from runtime.ops.choice import Choice

_layer_norm, _rotary_tables = packed_forward.layer_norm, packed_forward.rotary_tables
# Of a row that is added up at a time, as a kernel's tile would.
TILE = 64


def _needs_half(manifest: Manifest) -> str:
    return "in float32 there is nothing to hide it" if manifest.dtype == "float32" else ""


def _norm(module: Any, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    normed: Tensor = centred / (variance + module.eps).sqrt() * module.weight + module.bias
    return normed


def _affine(module: Any, x: Tensor) -> Tensor:
    normed = F.layer_norm(x, tuple(module.weight.shape), eps=module.eps)
    changed: Tensor = normed * module.weight + module.bias
    return changed


def _one_norm(packed: PackedESM2) -> Any:
    wrong = packed.layers[packed.num_layers // 2].final_layer_norm
    return replaced(
        packed_forward,
        "layer_norm",
        lambda module, x: (_norm if module is wrong else _layer_norm)(module, x),
    )


def _gelu(packed: PackedESM2) -> Any:
    return replaced(F, "gelu", lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))))


def _tables(position_ids: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(table.half().float() for table in _rotary_tables(position_ids, *rest))


def _linear(packed: PackedESM2) -> Any:
    def in_tiles(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        total = bias
        for a, b in zip(x.split(TILE, 1), weight.split(TILE, 1), strict=True):
            total = total + a @ b.T
        return total

    return replaced(F, "linear", in_tiles)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float
) -> Tensor:
    proteins = []
    for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        a, b, c = (x[start:end].transpose(0, 1) for x in (q, k, v))
        weights = torch.softmax(a @ b.mT * softmax_scale, -1)
        proteins.append((weights @ c).transpose(0, 1))
    return torch.cat(proteins)


def _kernel() -> Any:
    return replaced(
        varlen_attention, "choose", lambda *arguments: Choice("softmax in half precision", _attend)
    )


def _kept(plant: Callable[[PackedESM2], Any]) -> Callable[[PackedESM2], Any]:
    """A compiler would leave out what a cast rounds, and the fault with it."""

    @contextmanager
    def planted(packed: PackedESM2) -> Iterator[None]:
        from torch._inductor import config

        with config.patch(emulate_precision_casts=True), plant(packed):
            yield

    return planted


def half_faults() -> Iterable[Fault]:
    """Where the build promises float32."""
    planted = [
        ("LayerNorm in the dtype", patched("layer_norm", _norm)),
        ("one LayerNorm of many in the dtype", _one_norm),
        ("scale and shift of LayerNorm in the dtype", patched("layer_norm", _affine)),
        ("GELU in the dtype", _gelu),
        ("rotary tables in float16", patched("rotary_tables", _tables)),
        ("sums of linears in the dtype", _linear),
    ]  # fmt: skip
    return [
        *(
            GraphFault(name, "half precision", _kept(plant), applies=_needs_half)
            for name, plant in planted
        ),
        RuntimeFault("softmax in the dtype", "half precision", _kernel, applies=_needs_half),
    ]
