"""The packed forward of ESM-2, from fair-esm's own modules and weights.

``PackedESM2`` is what every target traces. Its parameters keep fair-esm's names, so that one
``weights.safetensors`` serves every engine. Source of each step: fair-esm 2.0.0,
``esm/model/esm2.py`` (forward) and ``esm/modules.py`` (layer).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from exporter.model.contact_head import PackedContactHead
from exporter.model.spans import token_spans
from runtime.ops import varlen_attention  # noqa: F401  registers the op
from runtime.ops.rotary import in_torch

# esm/model/esm2.py:85: the mask ratio seen in training, by which every embedding is scaled.
MASK_RATIO_TRAIN = 0.15 * 0.8


@torch.jit.script
def _scripted_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: Tensor, softmax_scale: float
) -> Tensor:
    # Scripted, because torch.jit.trace would bake the number that .item() gives while tracing.
    return torch.ops.esm2.varlen_attention(q, k, v, cu_seqlens, int(max_seqlen), softmax_scale)  # type: ignore[no-any-return]


def _rotate_on_device(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if x.is_cuda:
        return torch.ops.esm2.rotary(x, cos, sin)  # type: ignore[no-any-return]
    return in_torch(x, cos, sin)


# Scripted, because torch.jit.trace would bake the branch of the device that it ran on.
_scripted_rotate = torch.jit.script(_rotate_on_device)


def _table_of_device(table: Tensor, num_heads: int) -> Tensor:
    # Broadcasting over rows of D floats costs a CPU twice the time of reading whole tables; a GPU
    # would wait for the memory that they are read from.
    return table if table.is_cuda else table.repeat(1, num_heads, 1)


_scripted_table_of_device = torch.jit.script(_table_of_device)


@torch.jit.script
def _require_weights(weight: Tensor) -> Tensor:
    # An exported file holds one element per parameter, expanded: every stride is 0.
    if weight.stride(0) == 0:
        raise RuntimeError(
            "this TorchScript file holds no weights: load it with runtime.load(<artifact folder>), "
            "or load weights.safetensors into it with load_state_dict(..., assign=True)"
        )
    return weight


class PackedSelfAttention(nn.Module):
    """The projections of fair-esm's ``MultiheadAttention`` around ``esm2::varlen_attention``."""

    def __init__(self, attention: Any):
        super().__init__()
        self.q_proj: nn.Linear = attention.q_proj
        self.k_proj: nn.Linear = attention.k_proj
        self.v_proj: nn.Linear = attention.v_proj
        self.out_proj: nn.Linear = attention.out_proj
        self.num_heads: int = attention.num_heads
        self.head_dim: int = attention.head_dim
        self.softmax_scale: float = self.head_dim**-0.5

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor, max_seqlen: Tensor | int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``[T, E]`` to ``[T, E]``, and queries and keys ``[T, H, D]`` after rotary.

        Cos and sin are as ``rotary_tables`` gives them.
        """
        heads = (-1, self.num_heads, self.head_dim)
        q = rotate(self.q_proj(x).view(heads), cos, sin)
        k = rotate(self.k_proj(x).view(heads), cos, sin)
        v = self.v_proj(x).view(heads)
        tracing = is_tracing()
        attend = _scripted_attention if tracing else torch.ops.esm2.varlen_attention
        attended = attend(q, k, v, cu_seqlens, max_seqlen, self.softmax_scale)
        return self.out_proj(attended.flatten(1)), q, k


class PackedLayer(nn.Module):
    """fair-esm's ``TransformerLayer`` (esm/modules.py:84) on ``[T, E]``."""

    def __init__(self, layer: Any):
        super().__init__()
        self.self_attn = PackedSelfAttention(layer.self_attn)
        self.self_attn_layer_norm: nn.LayerNorm = layer.self_attn_layer_norm
        self.fc1: nn.Linear = layer.fc1
        self.fc2: nn.Linear = layer.fc2
        self.final_layer_norm: nn.LayerNorm = layer.final_layer_norm

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor, max_seqlen: Tensor | int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``PackedSelfAttention.forward``."""
        normed = layer_norm(self.self_attn_layer_norm, x)
        attended, q, k = self.self_attn(normed, cos, sin, cu_seqlens, max_seqlen)
        x = x + attended
        normed = layer_norm(self.final_layer_norm, x)
        return x + self.fc2(F.gelu(self.fc1(normed))), q, k


class PackedLMHead(nn.Module):
    """fair-esm's ``RobertaLMHead`` without its alias of the embedding table."""

    def __init__(self, head: Any):
        super().__init__()
        self.dense: nn.Linear = head.dense
        self.layer_norm: nn.LayerNorm = head.layer_norm
        self.bias: nn.Parameter = head.bias

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``[T, E]`` and the table ``[33, E]`` to logits ``[T, 33]``."""
        x = layer_norm(self.layer_norm, F.gelu(self.dense(x)))
        return F.linear(x, embedding, self.bias)


class NoLMHead(nn.Module):
    """In the place of the LM head of a checkpoint without one: logits of no columns."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., E]`` to ``[..., 0]``."""
        return x[..., :0]


class PackedESM2(nn.Module):
    """ESM-2 on a pack: ``(input_ids, cu_seqlens, max_seqlen)`` to logits and representations.

    Shares its parameters with ``base_model``. Outputs come in the order of ``output_names``; there
    are no logits where ``base_model`` has a ``NoLMHead``, and there is a ``head`` where it has one
    (``exporter.model.heads``).

    Args:
        base_model: fair-esm's ``ESM2``, in eval mode.
        repr_layers: which layers' representations to return; 0 is the scaled embedding.
        pool: None, or how to pool the last of them into one vector per protein
            (``"mean"``, ``"mean-with-eos"``, ``"cls"``).
        contacts: probabilities of contacts between residues, too.

    Raises:
        ValueError: a layer outside 0..num_layers.
    """

    inv_freq: Tensor

    def __init__(
        self, base_model: Any, repr_layers: Iterable[int] = (), pool: str | None = None,
        contacts: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.num_layers: int = base_model.num_layers
        self.num_heads: int = base_model.attention_heads
        self.head_dim: int = base_model.embed_dim // base_model.attention_heads
        self.repr_layers = check_repr_layers(repr_layers, self.num_layers)
        self.pool = pool
        self.token_dropout: bool = base_model.token_dropout
        self.mask_idx: int = base_model.mask_idx
        self.embed_tokens: nn.Embedding = base_model.embed_tokens
        self.layers = nn.ModuleList(PackedLayer(layer) for layer in base_model.layers)
        self.emb_layer_norm_after: nn.LayerNorm = base_model.emb_layer_norm_after
        has_lm_head = not isinstance(base_model.lm_head, NoLMHead)
        self.lm_head = PackedLMHead(base_model.lm_head) if has_lm_head else None
        self.head = getattr(base_model, "head", None)
        self.contact_head = (
            PackedContactHead(base_model.contact_head, self.num_layers, self.head_dim)
            if contacts
            else None
        )
        # The reference's own frequencies: a checkpoint may hold rounded ones.
        inv_freq: Tensor = base_model.layers[0].self_attn.rot_emb.inv_freq
        self._reference_inv_freq = inv_freq.detach().clone()
        self.register_buffer("inv_freq", self._reference_inv_freq.clone())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedESM2":
        # .half() would round the frequencies, and in bfloat16 positions above 256 would collide.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        weight = self.embed_tokens.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.inv_freq = self._reference_inv_freq.to(weight.device, dtype)
        return self

    @property
    def outputs(self) -> dict[str, tuple[str, int]]:
        """Rows, T, N or P, and width of each: ``logits`` if there is an LM head,
        ``representations.<k>`` ascending, ``pooled``, ``head`` and ``contacts``.
        """
        vocabulary, width = self.embed_tokens.weight.shape
        found = {"logits": ("T", vocabulary)} if self.lm_head is not None else {}
        found |= {f"representations.{layer}": ("T", width) for layer in self.repr_layers}
        found |= {"pooled": ("N", width)} if self.pool else {}
        found |= {"head": (self.head.rows, self.head.num_labels)} if self.head else {}
        return found | ({"contacts": ("P", 1)} if self.contact_head is not None else {})

    @property
    def output_names(self) -> tuple[str, ...]:
        """In the order in which ``forward`` gives them."""
        return tuple(self.outputs)

    def forward(
        self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: Tensor
    ) -> tuple[Tensor, ...]:
        """Runs one pack.

        Args:
            input_ids: ``[T]`` int64 token ids, BOS and EOS of every protein included, no padding.
            cu_seqlens: ``[N + 1]`` int32 cumulative lengths.
            max_seqlen: 0-dim int64 on the host: tokens of the longest protein.

        Returns:
            ``[T, 33]`` logits, ``[T, E]`` per layer, ``[N, E]`` pooled, ``[N, C]`` or ``[T, C]``
            of the head, and ``[P, 1]`` contacts, float32 at least.
        """
        layers = (*self.repr_layers, self.num_layers) if self.head else self.repr_layers
        logits, representations, contacts = self.encode(input_ids, cu_seqlens, max_seqlen, layers)
        outputs = [] if logits is None else [logits]
        outputs += [representations[layer] for layer in self.repr_layers]
        if self.pool:
            outputs.append(pool_packed(outputs[-1], cu_seqlens, self.pool))
        if self.head is not None:
            outputs.append(self.head(representations[self.num_layers], cu_seqlens))
        if contacts is not None:
            outputs.append(contacts)
        return tuple(outputs)

    def encode(
        self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: Tensor, repr_layers: Sequence[int]
    ) -> tuple[Tensor | None, dict[int, Tensor], Tensor | None]:
        """``forward`` with the layers chosen by the call: logits, ``{layer: [T, E]}``, contacts."""
        embedding = self.embed_tokens.weight
        longest: Tensor | int = max_seqlen
        if is_tracing():
            embedding = _require_weights(embedding)
        else:
            longest = max_seqlen.item()  # type: ignore[assignment]
        _, start, end = token_spans(cu_seqlens, input_ids)
        position_ids = torch.ones_like(input_ids).cumsum(0) - 1 - start
        cos, sin = rotary_tables(position_ids, self.inv_freq, self.num_heads)

        x = F.embedding(input_ids, embedding)
        if self.token_dropout:
            x = scale_token_dropout(x, input_ids == self.mask_idx, start, end)
        representations = {0: x}
        contact_head = self.contact_head
        contacts = None if contact_head is None else contact_head.empty(cu_seqlens)
        for depth, layer in enumerate(self.layers, start=1):
            x, q, k = layer(x, cos, sin, cu_seqlens, longest)
            if contact_head is not None and contacts is not None:
                contacts = contact_head.add(contacts, depth, q, k, cu_seqlens, input_ids)
            if depth in repr_layers:
                representations[depth] = x
        x = layer_norm(self.emb_layer_norm_after, x)
        representations[self.num_layers] = x
        logits = None if self.lm_head is None else self.lm_head(x, embedding)
        if contact_head is not None and contacts is not None:
            contacts = contact_head(contacts)
        return logits, {layer: representations[layer] for layer in repr_layers}, contacts


def check_repr_layers(repr_layers: Iterable[int], num_layers: int) -> tuple[int, ...]:
    """The layers in ascending order, each once.

    Raises:
        ValueError: a layer outside 0..num_layers.
    """
    layers = tuple(sorted(set(repr_layers)))
    wrong = [layer for layer in layers if not 0 <= layer <= num_layers]
    if wrong:
        raise ValueError(f"layers {wrong} do not exist: this model has layers 0..{num_layers}")
    return layers


def layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm with the module's parameters; apex's fused module could not be traced."""
    return F.layer_norm(x, tuple(module.weight.shape), module.weight, module.bias, module.eps)


def rotary_tables(position_ids: Tensor, inv_freq: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Cos and signed sin of the rotary angles, in the dtype of ``inv_freq``.

    Source: esm/rotary_embedding.py:46, whose cached tables must not be traced.

    Returns:
        ``[T, H, D]`` each, ``[T, 1, D]`` on CUDA; the sine of the first half of D is negative
        (see ``rotate``).
    """
    angles = (position_ids.to(inv_freq.dtype).unsqueeze(-1) * inv_freq).unsqueeze(1)
    cos, sin = angles.cos(), angles.sin()
    tracing = is_tracing()
    table_of_device = _scripted_table_of_device if tracing else _table_of_device
    cos_table = table_of_device(torch.cat([cos, cos], dim=-1), num_heads)
    sin_table = table_of_device(torch.cat([-sin, sin], dim=-1), num_heads)
    return cos_table, sin_table


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """GPT-NeoX rotary of ``[T, H, D]``: the two halves of D are one complex number's parts.

    Source: esm/rotary_embedding.py:11-21 (RoFormer, arXiv:2104.09864). The product is taken in
    the dtype of the tables, float32 at least, and rounded once.
    """
    return _scripted_rotate(x, cos, sin) if is_tracing() else in_torch(x, cos, sin)


def scale_token_dropout(x: Tensor, is_mask: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Zeroes masked embeddings and rescales each protein by its own share of masks.

    Source: esm/model/esm2.py:82-90; its row sums become differences of one prefix sum.

    Args:
        x: ``[T, E]`` embeddings.
        is_mask: ``[T]`` bool.
        start, end: ``[T]`` int64, the span of each token's protein.
    """
    counts = is_mask.long().cumsum(0)
    masks_before = torch.cat([torch.zeros_like(counts[:1]), counts])
    wide = torch.promote_types(x.dtype, torch.float32)
    observed = (masks_before[end] - masks_before[start]).to(wide) / (end - start)
    scaled = x.masked_fill(is_mask.unsqueeze(-1), 0.0) * (1 - MASK_RATIO_TRAIN)
    return (scaled / (1 - observed).unsqueeze(-1)).to(x.dtype)


def pool_packed(x: Tensor, cu_seqlens: Tensor, pool: str) -> Tensor:
    """Pools ``[T, E]`` into ``[N, E]``; the same definitions as ``runtime.pooling``.

    Sums run over ``N + 1`` slots (see ``token_spans``) and in float64 (as there). scatter_add, not
    index_add: that becomes ONNX's ScatterND, and ONNX Runtime 1.31 on a CPU adds its rows from
    several threads at once, so that sums of more than a few hundred rows come out wrong.
    """
    protein_index, start, end = token_spans(cu_seqlens, x[:, 0])
    if pool == "cls":
        return x[cu_seqlens[:-1].long()]
    position = torch.ones_like(start).cumsum(0) - 1
    is_bos = position == start
    is_eos = position == end - 1
    skipped = is_bos if pool == "mean-with-eos" else is_bos | is_eos
    kept = ~skipped | (end - start == 1)
    weight = kept.unsqueeze(-1).double()
    slots = torch.zeros_like(cu_seqlens, dtype=torch.float64).unsqueeze(-1)
    slot = protein_index.unsqueeze(-1)
    width = x.shape[-1]
    count = slots.scatter_add(0, slot, weight)
    total = slots.repeat(1, width).scatter_add(0, slot.expand(-1, width), x.double() * weight)
    return (total / count).to(x.dtype)[:-1]
