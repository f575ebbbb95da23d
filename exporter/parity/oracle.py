"""The truth: eager fair-esm in float64, one protein at a time, without padding."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from runtime.engine import Outputs
from runtime.packing import PackedBatch
from runtime.pooling import Pool, pool


def run_eager(
    model: nn.Module,
    packs: Mapping[str, PackedBatch],
    layers: tuple[int, ...],
    pooling: Pool,
    dtype: torch.dtype,
) -> dict[str, Outputs]:
    """Runs every protein of every pack alone through eager fair-esm.

    Args:
        model: fair-esm's ``ESM2``; it has its own dtype again afterwards.
        packs: by name.
        layers: representations to keep.
        pooling: of the last of them.
        dtype: float64 is the oracle; another gives the error that eager itself has in it.
    """
    seen: dict[bytes, Outputs] = {}
    with _in_dtype(model, dtype):
        progress = tqdm(packs.items(), desc=f"eager fair-esm in {dtype}", leave=False, disable=None)
        return {name: _run_pack(model, batch, layers, pooling, seen) for name, batch in progress}


def _run_pack(
    model: nn.Module, batch: PackedBatch, layers: tuple[int, ...], pooling: Pool,
    seen: dict[bytes, Outputs],
) -> Outputs:  # fmt: skip
    answers = []
    for tokens in np.split(batch.input_ids, batch.cu_seqlens[1:-1]):
        key = tokens.tobytes()
        if key not in seen:
            seen[key] = _run_protein(model, torch.from_numpy(tokens), layers)
        answers.append(seen[key])
    representations = {
        layer: np.concatenate([answer.representations[layer] for answer in answers])
        for layer in layers
    }
    return Outputs(
        logits=np.concatenate([answer.logits for answer in answers]),
        representations=representations,
        pooled=pool(representations[layers[-1]], batch.cu_seqlens, pooling),
    )


@torch.no_grad()
def _run_protein(model: nn.Module, tokens: torch.Tensor, layers: tuple[int, ...]) -> Outputs:
    outputs = model(tokens[None], repr_layers=layers)
    return Outputs(
        logits=_to_numpy(outputs["logits"][0]),
        representations={k: _to_numpy(outputs["representations"][k][0]) for k in layers},
        pooled=None,
    )


def _to_numpy(tensor: torch.Tensor) -> NDArray[np.floating]:
    # NumPy has no bfloat16; float32 holds every bfloat16 exactly.
    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return wide.numpy()


@contextmanager
def _in_dtype(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    before = next(model.parameters()).dtype
    model.to(dtype)
    _forget_rotary_tables(model)
    try:
        with _softmax_at_least(model, dtype):
            yield
    finally:
        model.to(before)
        _forget_rotary_tables(model)


def _forget_rotary_tables(model: nn.Module) -> None:
    # esm/rotary_embedding.py:48 renews its tables when the length changes, not when the dtype does.
    for layer in model.layers:
        layer.self_attn.rot_emb._seq_len_cached = None


@contextmanager
def _softmax_at_least(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Lets fair-esm's attention take its softmax in float64 where the model is float64.

    esm/multihead_attention.py:19 takes it in float32 in every dtype: right for half precision, but
    it would put float32 rounding into the oracle.
    """
    module = sys.modules[type(model.layers[0].self_attn).__module__]
    original = module.utils_softmax
    if dtype == torch.float64:
        module.utils_softmax = lambda x, dim, onnx_trace=False: torch.softmax(x, dim)
    try:
        yield
    finally:
        module.utils_softmax = original
