"""What half precision must cost: ESM-2 in float64, each result rounded as the build promises.

Products, LayerNorm, softmax, GELU and rotary are exact here, and what they give is rounded to the
dtype, once. An engine that does any of them in half precision itself rounds more than this.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from exporter.model.packed_forward import NoLMHead
from exporter.parity.answers import Floats


class Rounded:
    """fair-esm's ``ESM2`` (esm/model/esm2.py, esm/modules.py), one protein at a time.

    Args:
        model: fair-esm's, whose parameters are numbers of ``dtype`` already.
        dtype: to which results are rounded; float64 rounds nothing.
    """

    def __init__(self, model: Any, dtype: torch.dtype):
        self._model = model
        self._dtype = dtype

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> dict[str, Floats]:
        """The last representation ``[L, E]`` and logits ``[L, 33]`` of ``[L]`` without masks."""
        model = self._model
        x = model.embed_tokens.weight.double()[tokens]
        if model.token_dropout:
            x = self._round(x * (1 - 0.15 * 0.8))
        for layer in model.layers:
            normed = self._norm(layer.self_attn_layer_norm, x)
            x = self._round(x + self._attention(layer.self_attn, normed))
            normed = self._norm(layer.final_layer_norm, x)
            inner = self._round(functional.gelu(self._linear(layer.fc1, normed)))
            x = self._round(x + self._linear(layer.fc2, inner))
        x = self._norm(model.emb_layer_norm_after, x)
        outputs = {f"representations.{model.num_layers}": x.numpy()}
        if isinstance(model.lm_head, NoLMHead):
            return outputs
        head = model.lm_head
        inner = self._norm(
            head.layer_norm, self._round(functional.gelu(self._linear(head.dense, x)))
        )
        logits = functional.linear(inner, model.embed_tokens.weight.double(), head.bias.double())
        return {"logits": self._round(logits).numpy(), **outputs}

    def _attention(self, attention: Any, x: Tensor) -> Tensor:
        heads = (len(x), attention.num_heads, attention.head_dim)
        q, k, v = (
            self._linear(projection, x).view(heads).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        # As float32 has them: an angle of hundreds of radians is rounded before its cosine.
        positions = torch.arange(len(x), dtype=torch.float32)
        angles = torch.outer(positions, attention.rot_emb.inv_freq.float()).double()
        q, k = (self._round(_rotate(x, angles.cos(), angles.sin())) for x in (q, k))
        weights = torch.softmax(q @ k.mT * attention.head_dim**-0.5, -1)
        attended = self._round(weights @ v).transpose(0, 1).flatten(1)
        return self._linear(attention.out_proj, attended)

    def _norm(self, norm: Any, x: Tensor) -> Tensor:
        weight, bias = norm.weight.double(), norm.bias.double()
        return self._round(functional.layer_norm(x, tuple(weight.shape), weight, bias, norm.eps))

    def _linear(self, linear: Any, x: Tensor) -> Tensor:
        return self._round(functional.linear(x, linear.weight.double(), linear.bias.double()))

    def _round(self, x: Tensor) -> Tensor:
        return x.to(self._dtype).double()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
