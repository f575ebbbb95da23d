"""Hugging Face's names of ESM-2's parameters, and fair-esm's, as a table."""

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

# transformers 5, models/esm/modeling_esm.py -> fair-esm 2.0.0, esm/model/esm2.py.
# "{}" is the layer's number, the same in both.
RENAMES = {
    "esm.embeddings.word_embeddings.weight": "embed_tokens.weight",
    "esm.encoder.layer.{}.attention.self.query": "layers.{}.self_attn.q_proj",
    "esm.encoder.layer.{}.attention.self.key": "layers.{}.self_attn.k_proj",
    "esm.encoder.layer.{}.attention.self.value": "layers.{}.self_attn.v_proj",
    "esm.encoder.layer.{}.attention.self.rotary_embeddings": "layers.{}.self_attn.rot_emb",
    "esm.encoder.layer.{}.attention.output.dense": "layers.{}.self_attn.out_proj",
    "esm.encoder.layer.{}.attention.LayerNorm": "layers.{}.self_attn_layer_norm",
    "esm.encoder.layer.{}.intermediate.dense": "layers.{}.fc1",
    "esm.encoder.layer.{}.output.dense": "layers.{}.fc2",
    "esm.encoder.layer.{}.LayerNorm": "layers.{}.final_layer_norm",
    "esm.encoder.emb_layer_norm_after": "emb_layer_norm_after",
    "esm.contact_head.regression": "contact_head.regression",
    "lm_head.dense": "lm_head.dense",
    "lm_head.layer_norm": "lm_head.layer_norm",
    "lm_head.decoder.weight": "lm_head.weight",
    "lm_head.bias": "lm_head.bias",
}

# transformers 5 writes LayerNorm's parameters under TensorFlow's names, older versions do not.
SUFFIXES = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}

# Stored by some versions, used by none with rotary positions; a second copy of lm_head.bias; and
# transformers 5's one entry, literally with a star, for the frequencies that a formula gives.
UNUSED = re.compile(
    r"esm\.embeddings\.position_(embeddings|ids)|lm_head\.decoder\.bias"
    r"|esm\.encoder\.layer\.\*\.attention\.self\.rotary_embeddings\.inv_freq"
)

_PATTERNS = [
    (re.compile(re.escape(theirs).replace(r"\{\}", r"(\d+)") + r"(?=\.|$)"), ours)
    for theirs, ours in RENAMES.items()
]


def rename_to_fair_esm(state: Mapping[str, T]) -> dict[str, T]:
    """``state`` under fair-esm's names; names that the table lacks are kept as they are."""
    return {_rename(name): value for name, value in state.items() if not UNUSED.match(name)}


def _rename(name: str) -> str:
    for theirs, ours in SUFFIXES.items():
        if name.endswith(theirs):
            name = name.removesuffix(theirs) + ours
    for pattern, ours in _PATTERNS:
        if match := pattern.match(name):
            return ours.format(*match.groups()) + name[match.end() :]
    return name
