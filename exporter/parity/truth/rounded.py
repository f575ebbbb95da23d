"""What half precision must cost: ESM-2 in float64, each result rounded as the build promises.

Products, LayerNorm, softmax, GELU and rotary are exact here, and what they give is rounded to the
dtype, once. An engine that does any of them in half precision itself rounds more than this.
"""

from collections.abc import Collection
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from exporter.model.packed_forward import NoLMHead
from exporter.parity.answers import Floats
from runtime.packing import PackedBatch

Step = Literal["norm", "linear", "gelu"]
KEPT: tuple[Step, ...] = get_args(Step)


class Rounded:
    """fair-esm's ``ESM2`` (esm/model/esm2.py, esm/modules.py), packed.

    Args:
        model: fair-esm's, whose parameters are numbers of ``dtype`` already.
        dtype: to which results are rounded; float64 rounds nothing.
        device: where it computes. The model stays where it is: of a large one, a linear at a time
            is turned into float64.
        kept: steps whose results go on unrounded, as where a compiler fuses them with the next.
    """

    def __init__(
        self, model: Any, dtype: torch.dtype, device: str = "cpu", kept: Collection[Step] = ()
    ):
        self._model = model
        self._dtype = dtype
        self._device = device
        self._kept = kept

    @torch.no_grad()
    def __call__(self, batch: PackedBatch) -> dict[str, Floats]:
        """The last representation ``[T, E]`` and logits ``[T, 33]`` of a pack without masks."""
        model = self._model
        lengths = np.diff(batch.cu_seqlens).tolist()
        x = self._exact(model.embed_tokens.weight)[torch.from_numpy(batch.input_ids)]
        if model.token_dropout:
            x = self._round(x * (1 - 0.15 * 0.8))
        for layer in model.layers:
            normed = self._norm(layer.self_attn_layer_norm, x)
            x = self._round(x + self._attention(layer.self_attn, normed, lengths))
            normed = self._norm(layer.final_layer_norm, x)
            inner = self._gelu(self._linear(layer.fc1, normed))
            x = self._round(x + self._linear(layer.fc2, inner))
        x = self._round(self._norm(model.emb_layer_norm_after, x))
        outputs = {f"representations.{model.num_layers}": x.cpu().numpy()}
        if isinstance(model.lm_head, NoLMHead):
            return outputs
        head = model.lm_head
        inner = self._norm(head.layer_norm, self._gelu(self._linear(head.dense, x)))
        table, bias = self._exact(model.embed_tokens.weight), self._exact(head.bias)
        logits = self._round(functional.linear(inner, table, bias))
        return {"logits": logits.cpu().numpy(), **outputs}

    def _attention(self, attention: Any, x: Tensor, lengths: list[int]) -> Tensor:
        # As float32 has them: an angle of hundreds of radians is rounded before its cosine.
        positions = torch.arange(max(lengths), dtype=torch.float32)
        angles = self._exact(torch.outer(positions, attention.rot_emb.inv_freq.float()))
        cos, sin = angles.cos(), angles.sin()
        heads = (-1, attention.num_heads, attention.head_dim)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        projected = [self._linear(projection, x).view(heads) for projection in projections]
        attended = []
        for q, k, v in zip(*(tensor.split(lengths) for tensor in projected), strict=True):
            q, k, v = (tensor.transpose(0, 1) for tensor in (q, k, v))
            q, k = (self._round(_rotate(x, cos[: x.shape[1]], sin[: x.shape[1]])) for x in (q, k))
            v = self._round(v)
            weights = torch.softmax(q @ k.mT * attention.head_dim**-0.5, -1)
            attended.append(self._round(weights @ v).transpose(0, 1).flatten(1))
        return self._linear(attention.out_proj, torch.cat(attended))

    def _norm(self, norm: Any, x: Tensor) -> Tensor:
        weight, bias = self._exact(norm.weight), self._exact(norm.bias)
        normed = functional.layer_norm(x, tuple(weight.shape), weight, bias, norm.eps)
        return self._unless_kept("norm", normed)

    def _gelu(self, x: Tensor) -> Tensor:
        return self._unless_kept("gelu", functional.gelu(x))

    def _linear(self, linear: Any, x: Tensor) -> Tensor:
        weight, bias = self._exact(linear.weight), self._exact(linear.bias)
        return self._unless_kept("linear", functional.linear(x, weight, bias))

    def _exact(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, torch.float64)

    def _unless_kept(self, step: Step, x: Tensor) -> Tensor:
        return x if step in self._kept else self._round(x)

    def _round(self, x: Tensor) -> Tensor:
        return x.to(self._dtype).double()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
