"""Faults that the gate must reject: one small, realistic mistake each, planted in a good artifact.

A fault of the graph is a bug of the exporter: the model is exported again with it. A fault of the
weights, of the manifest, or of the runtime leaves the engine file as it is.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

from exporter.formats.table import FORMATS
from exporter.formats.tracing import tracing_pack
from exporter.model import packed_forward
from exporter.model.packed_forward import PackedESM2, PackedLayer, PackedSelfAttention
from exporter.model.synthetic import synthetic_state
from exporter.parity.prove.contact_faults import contact_faults
from exporter.parity.prove.half_faults import half_faults
from exporter.parity.prove.head_faults import head_faults
from exporter.parity.prove.production_faults import production_faults
from exporter.parity.prove.replaced import patched, replaced
from exporter.parity.prove.size_faults import size_faults
from exporter.parity.prove.state_faults import state_faults
from exporter.planted import (
    Fault,
    GraphFault,
    ManifestFault,
    RuntimeFault,
    State,
    WeightsFault,
)
from runtime import pooling, tokenizer
from runtime.manifest_schema import Architecture, Manifest
from runtime.packing import PackedBatch


def faults_of(engine: str) -> list[Fault]:
    """All that an engine of this format can have."""
    return [*faults(), *FORMATS[engine].own_faults()]


def faults() -> list[Fault]:
    """All that any engine can have."""
    return [
        *_graph_faults(),
        *size_faults(),
        *half_faults(),
        *contact_faults(),
        *_weights_faults(),
        *head_faults(),
        *_runtime_faults(),
        *state_faults(),
        *production_faults(),
        *_manifest_faults(),
    ]


# --- what does not apply where -----------------------------------------------------------------


def _needs_pooled(manifest: Manifest) -> str:
    return "" if manifest.pool else "the artifact has no pooled output"


def _needs_token_dropout(manifest: Manifest) -> str:
    return "" if manifest.architecture.token_dropout else "this model has no token dropout"


def _needs_two_layers(manifest: Manifest) -> str:
    return "" if manifest.architecture.num_layers > 1 else "this model has one layer"


def _needs_float32(manifest: Manifest) -> str:
    return "" if manifest.dtype == "float32" else f"the weights are {manifest.dtype} already"


# --- graph ------------------------------------------------------------------------------------


def _interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = torch.stack([x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return (x * cos + pairs * sin).to(x.dtype)


def _rotates_q_only(packed: PackedESM2) -> Any:
    rotate = packed_forward.rotate
    turns: cycle[Callable[..., Tensor]] = cycle([rotate, lambda x, cos, sin: x])
    return replaced(packed_forward, "rotate", lambda *tables: next(turns)(*tables))


@contextmanager
def _softmax_scale(packed: PackedESM2) -> Iterator[None]:
    for layer in packed.layers:
        assert isinstance(layer, PackedLayer)
        layer.self_attn.softmax_scale *= 1.02
    yield


def _tanh_gelu(packed: PackedESM2) -> Any:
    return replaced(F, "gelu", partial(F.gelu, approximate="tanh"))


def _no_final_layer_norm(packed: PackedESM2) -> Any:
    original = packed_forward.layer_norm

    def without_final(module: Any, x: Tensor) -> Tensor:
        return x if module is packed.emb_layer_norm_after else original(module, x)

    return replaced(packed_forward, "layer_norm", without_final)


def _tiny_eps(module: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, tuple(module.weight.shape), module.weight, module.bias, 1e-12)


def _baked_max_seqlen(packed: PackedESM2) -> Any:
    original = PackedSelfAttention.forward
    traced = tracing_pack()[2]

    def baked(
        self: PackedSelfAttention, x: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor,
        max_seqlen: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        longest = traced if is_tracing() else int(traced)
        return original(self, x, cos, sin, cu_seqlens, longest)

    return replaced(PackedSelfAttention, "forward", baked)


def _positions_count_on(packed: PackedESM2) -> Any:
    original = packed_forward.rotary_tables

    def counting_on(position_ids: Tensor, *rest: Any) -> Any:
        return original(torch.ones_like(position_ids).cumsum(0) - 1, *rest)

    return replaced(packed_forward, "rotary_tables", counting_on)


def _pools_otherwise(packed: PackedESM2) -> Any:
    original = packed_forward.pool_packed
    return replaced(
        packed_forward, "pool_packed", lambda x, bounds, how: original(x, bounds, _OTHER_POOL[how])
    )


_OTHER_POOL: dict[str, Any] = {"mean": "mean-with-eos", "mean-with-eos": "mean", "cls": "mean"}

_scale_token_dropout = packed_forward.scale_token_dropout


def _ratio_over_the_pack(x: Tensor, is_mask: Tensor, start: Tensor, end: Tensor) -> Tensor:
    whole = torch.ones_like(start).sum(0, keepdim=True).expand_as(end)
    return _scale_token_dropout(x, is_mask, torch.zeros_like(start), whole)


def _constant_scale(x: Tensor, is_mask: Tensor, start: Tensor, end: Tensor) -> Tensor:
    return x.masked_fill(is_mask.unsqueeze(-1), 0.0) * (1 - packed_forward.MASK_RATIO_TRAIN)


def _masks_kept(x: Tensor, is_mask: Tensor, start: Tensor, end: Tensor) -> Tensor:
    masked = is_mask.unsqueeze(-1)
    return torch.where(masked, x, _scale_token_dropout(x, is_mask, start, end))


def _graph_faults() -> Iterable[Fault]:
    dropout = partial(patched, "scale_token_dropout")
    needs_pooled, needs_dropout = _needs_pooled, _needs_token_dropout
    return [
        GraphFault("rotary halves interleaved", "graph", patched("rotate", _interleaved)),
        GraphFault("rotary missing on k", "graph", _rotates_q_only),
        GraphFault("softmax scale 2 % too large", "graph", _softmax_scale),
        GraphFault("GELU by tanh", "graph", _tanh_gelu),
        GraphFault("no final LayerNorm", "graph", _no_final_layer_norm),
        GraphFault("LayerNorm eps 1e-12", "graph", patched("layer_norm", _tiny_eps)),
        GraphFault("max_seqlen baked from tracing", "packing", _baked_max_seqlen),
        GraphFault("positions do not restart", "packing", _positions_count_on),
        GraphFault(
            "token dropout missing", "token dropout", dropout(lambda x, *rest: x),
            applies=needs_dropout,
        ),
        GraphFault(
            "token dropout a constant 0.88", "token dropout", dropout(_constant_scale),
            applies=needs_dropout,
        ),
        GraphFault(
            "mask ratio over the pack", "token dropout", dropout(_ratio_over_the_pack),
            applies=needs_dropout,
        ),
        GraphFault(
            "masks not zeroed", "token dropout", dropout(_masks_kept), applies=needs_dropout
        ),
        GraphFault(
            "pooled output of another kind", "tokenizer and pooling", _pools_otherwise,
            applies=needs_pooled,
        ),
    ]  # fmt: skip


# --- weights ----------------------------------------------------------------------------------


def _middle(architecture: Architecture) -> str:
    return f"layers.{architecture.num_layers // 2}"


def _rotary_base(state: State, architecture: Architecture) -> dict[str, Tensor]:
    exponents = torch.arange(0, architecture.head_dim, 2) / architecture.head_dim
    return {"inv_freq": 1.0 / 5000.0**exponents}


def _layer_skipped(state: State, architecture: Architecture) -> dict[str, Tensor]:
    # What a layer adds to the residual stream is then exactly nothing.
    branches = ("self_attn.out_proj", "fc2")
    names = [
        f"{_middle(architecture)}.{branch}.{part}"
        for branch in branches
        for part in ("weight", "bias")
    ]
    return {name: torch.zeros_like(state[name]) for name in names}


def _layers_swapped(state: State, architecture: Architecture) -> dict[str, Tensor]:
    one, other = "layers.0.", f"{_middle(architecture)}."
    swapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(one):
            twin = other + name.removeprefix(one)
            swapped |= {twin: tensor, name: state[twin]}
    return swapped


def _another_seed(state: State, architecture: Architecture) -> dict[str, Tensor]:
    name = f"{_middle(architecture)}.self_attn.v_proj.weight"
    for seed in (4711, 4712):
        drawn = synthetic_state({name: state[name].shape}, seed)
        if not torch.equal(drawn[name], state[name]):
            break
    return drawn


def _row_swapped(state: State, architecture: Architecture) -> dict[str, Tensor]:
    name = f"{_middle(architecture)}.fc1.weight"
    tensor = state[name].clone()
    tensor[[0, 1]] = tensor[[1, 0]]
    return {name: tensor}


def _bias_zeroed(state: State, architecture: Architecture) -> dict[str, Tensor]:
    name = f"{_middle(architecture)}.final_layer_norm.bias"
    return {name: torch.zeros_like(state[name])}


def _one_bit(state: State, architecture: Architecture) -> dict[str, Tensor]:
    name = f"{_middle(architecture)}.fc2.weight"
    tensor = state[name].clone()
    bits = {2: torch.int16, 4: torch.int32}[tensor.itemsize]
    tensor.view(bits)[-1, -1] ^= 1
    return {name: tensor}


def _rounded(state: State, architecture: Architecture) -> dict[str, Tensor]:
    return {name: tensor.half().float() for name, tensor in state.items() if name != "inv_freq"}


def _weights_faults() -> Iterable[Fault]:
    return [
        WeightsFault("rotary base 5000", "graph", _rotary_base),
        WeightsFault("one layer skipped", "graph", _layer_skipped),
        WeightsFault("two layers swapped", "graph", _layers_swapped, applies=_needs_two_layers),
        WeightsFault("one tensor of another seed", "weights", _another_seed),
        WeightsFault("two rows of a tensor swapped", "weights", _row_swapped),
        WeightsFault("a LayerNorm bias zeroed", "weights", _bias_zeroed),
        WeightsFault("one weight off by its last bit", "weights", _one_bit),
        WeightsFault("weights rounded to float16", "weights", _rounded, applies=_needs_float32),
    ]


# --- runtime ----------------------------------------------------------------------------------


def _proteins_merged() -> Any:
    original = PackedBatch.from_tokens

    def merging(tokens: Any, names: Any = ()) -> PackedBatch:
        if len(tokens) < 2:
            return original(tokens, names)
        return original([np.concatenate(tokens[:2]), *tokens[2:]])

    return replaced(PackedBatch, "from_tokens", merging)


def _boundary_off_by_one() -> Any:
    original = PackedBatch.from_tokens

    def shifting(tokens: Any, names: Any = ()) -> PackedBatch:
        if len(tokens) < 2 or len(tokens[1]) < 2:
            return original(tokens, names)
        first, second, *rest = tokens
        return original([np.append(first, second[0]), second[1:], *rest], names)

    return replaced(PackedBatch, "from_tokens", shifting)


def _bos_missing() -> Any:
    original = tokenizer.tokenize
    return replaced(
        tokenizer, "tokenize", lambda *arguments, **options: original(*arguments, **options)[1:]
    )


@contextmanager
def _vocabulary_swapped() -> Iterator[None]:
    table = tokenizer._ID_OF_CHARACTER.copy()
    table[[ord("L"), ord("A")]] = table[[ord("A"), ord("L")]]
    ids = {"L": tokenizer.ID_OF_TOKEN["A"], "A": tokenizer.ID_OF_TOKEN["L"]}
    with ExitStack() as stack:
        stack.enter_context(patch.object(tokenizer, "_ID_OF_CHARACTER", table))
        stack.enter_context(patch.dict(tokenizer.ID_OF_TOKEN, ids))
        yield


def _eos_in_the_mean() -> Any:
    original = pooling.pool
    return replaced(pooling, "pool", lambda x, bounds, how: original(x, bounds, _OTHER_POOL[how]))


def _runtime_faults() -> Iterable[Fault]:
    return [
        RuntimeFault("two proteins merged", "packing", _proteins_merged),
        RuntimeFault("a boundary off by one", "packing", _boundary_off_by_one),
        RuntimeFault("BOS missing", "tokenizer and pooling", _bos_missing),
        RuntimeFault(
            "two vocabulary entries swapped", "tokenizer and pooling", _vocabulary_swapped
        ),
        RuntimeFault("EOS in the mean", "tokenizer and pooling", _eos_in_the_mean),
    ]


# --- manifest ---------------------------------------------------------------------------------


def _another_checkpoint(manifest: Manifest) -> Manifest:
    digest = manifest.weights.state_sha256[::-1]
    origin = msgspec.structs.replace(manifest.weights, state_sha256=digest)
    return msgspec.structs.replace(manifest, weights=origin)


def _another_pooling(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, pool=_OTHER_POOL[manifest.pool or "mean"])


def _digest_of_another_file(manifest: Manifest) -> Manifest:
    name = "weights.safetensors"
    entry = msgspec.structs.replace(manifest.files[name], sha256="0" * 64)
    return msgspec.structs.replace(manifest, files={**manifest.files, name: entry})


def _another_dtype(manifest: Manifest) -> Manifest:
    dtype = "float16" if manifest.dtype == "float32" else "float32"
    return msgspec.structs.replace(manifest, dtype=dtype)


def _edited(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, name=f"{manifest.name}-edited")


def _newer_schema(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, schema_version=manifest.schema_version + 1)


def _manifest_faults() -> Iterable[Fault]:
    return [
        ManifestFault("edited without its seal", "manifest", _edited, sealed=False),
        ManifestFault("of a newer schema", "manifest", _newer_schema),
        ManifestFault(
            "weights are not the file that it lists", "manifest", _digest_of_another_file
        ),
        ManifestFault("digest of another checkpoint", "manifest", _another_checkpoint),
        ManifestFault("names another dtype", "manifest", _another_dtype),
        ManifestFault("names another pooling", "manifest", _another_pooling, applies=_needs_pooled),
    ]
