"""Positions, read from the queries that an engine's first attention receives.

Compiled code shows no position ids. But a query of the first layer is a known vector, rotated by
its position: computed here in float64 from the weights, without the packed forward.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from runtime.manifest_schema import Manifest
from runtime.packing import PackedBatch
from runtime.tokenizer import TOKENS
from runtime.weights import FILE_NAME

# Relative error of a query: rounding stays far below, a position that is off by one far above.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}
MASK = TOKENS.index("<mask>")


def positions_in(
    queries: Tensor, folder: Path, manifest: Manifest, batch: PackedBatch
) -> NDArray[np.floating]:
    """Each token's position in its protein where its query is rotated by just that, else NaN.

    Args:
        queries: ``[T, H, D]`` of the first layer, after rotary.
        folder: the artifact.
        manifest: of it.
        batch: the pack.

    Returns:
        ``[T]`` float64.
    """
    lengths = np.diff(batch.cu_seqlens)
    positions = np.concatenate([np.arange(n) for n in lengths]).astype(np.float64)
    expected = _queries(folder, manifest, batch, torch.from_numpy(positions))
    difference = (queries.double().cpu() - expected).flatten(1).norm(dim=1)
    wrong = difference > TOLERANCE[queries.dtype] * expected.flatten(1).norm(dim=1)
    return np.where(wrong.numpy(), np.nan, positions)


def _queries(folder: Path, manifest: Manifest, batch: PackedBatch, positions: Tensor) -> Tensor:
    # Source: fair-esm esm/model/esm2.py:82-90, esm/modules.py:84, esm/rotary_embedding.py:11-46.
    layer = "layers.0.self_attn"
    with safe_open(folder / FILE_NAME, "pt") as file:
        weights = {
            name: file.get_tensor(name).double()
            for name in (
                "embed_tokens.weight", "inv_freq", f"{layer}_layer_norm.weight",
                f"{layer}_layer_norm.bias", f"{layer}.q_proj.weight", f"{layer}.q_proj.bias",
            )
        }  # fmt: skip
    input_ids = torch.from_numpy(batch.input_ids)
    x = weights["embed_tokens.weight"][input_ids]
    if manifest.architecture.token_dropout:
        is_mask = (input_ids == MASK).double()
        lengths = torch.from_numpy(np.diff(batch.cu_seqlens)).long()
        share = torch.stack([part.mean() for part in is_mask.split(lengths.tolist())])
        observed = 1 - share.repeat_interleave(lengths)
        x = x * ((1 - is_mask) * (1 - 0.15 * 0.8) / observed).unsqueeze(-1)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    x = x * weights[f"{layer}_layer_norm.weight"] + weights[f"{layer}_layer_norm.bias"]
    q = x @ weights[f"{layer}.q_proj.weight"].T + weights[f"{layer}.q_proj.bias"]
    q = q.view(len(q), manifest.architecture.num_heads, manifest.architecture.head_dim)
    angles = (positions.unsqueeze(-1) * weights["inv_freq"]).unsqueeze(1)
    first, second = q.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
