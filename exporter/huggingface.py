"""ESM-2 as Hugging Face's ``transformers`` stores it: folder, settings, and names as a table."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from exporter.architectures import Shape, checked_shape
from exporter.errors import CheckpointError

T = TypeVar("T")

# What fair-esm's ESM-2 computes; a folder with anything else is another model.
CONFIG = {
    "model_type": "esm",
    "position_embedding_type": "rotary",
    "layer_norm_eps": 1e-5,
    "emb_layer_norm_before": False,
}

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


def _patterns(renames: Mapping[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [
        (re.compile(re.escape(old).replace(r"\{\}", r"(\d+)") + r"(?=\.|$)"), new)
        for old, new in renames.items()
    ]


_PATTERNS = _patterns(RENAMES)
_PATTERNS_BACK = _patterns({ours: theirs for theirs, ours in RENAMES.items()})


def read_folder(folder: Path) -> tuple[Shape, bool, dict[str, Tensor]]:
    """Shape, token dropout and parameters of ESM-2 as ``transformers`` stores it."""
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(f"{folder} is not a Hugging Face model: it holds no config.json")
    try:
        config = json.loads(config_path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{config_path} is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{config_path} does not hold a model's settings")
    wrong = [
        f"{key} {config.get(key)!r} instead of {value!r}"
        for key, value in CONFIG.items()
        if config.get(key) != value
    ]
    if wrong:
        raise CheckpointError(f"{folder} is not ESM-2: config.json has {', '.join(wrong)}")
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    try:
        shape = checked_shape(
            config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]
        )
        if index.is_file():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a whole Hugging Face model: {error}") from None
    stored: dict[str, Tensor] = {}
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} holds no {name}")
        try:
            stored.update(load_file(folder / name))
        except SafetensorError as error:
            raise CheckpointError(f"{folder / name} is truncated or damaged ({error})") from None
    return shape, bool(config.get("token_dropout", False)), rename_to_fair_esm(stored)


def rename_to_fair_esm(state: Mapping[str, T]) -> dict[str, T]:
    """``state`` under fair-esm's names; names that the table lacks are kept as they are."""
    return {_rename(name): value for name, value in state.items() if not UNUSED.match(name)}


def rename_to_hugging_face(state: Mapping[str, T]) -> dict[str, T]:
    """``state`` under the names that ``transformers`` gives; the same table, read backwards.

    Raises:
        KeyError: a name that the table lacks.
    """
    return {_rename_back(name): value for name, value in state.items()}


def _rename_back(name: str) -> str:
    for pattern, theirs in _PATTERNS_BACK:
        if match := pattern.match(name):
            return theirs.format(*match.groups()) + name[match.end() :]
    raise KeyError(name)


def _rename(name: str) -> str:
    for theirs, ours in SUFFIXES.items():
        if name.endswith(theirs):
            name = name.removesuffix(theirs) + ours
    for pattern, ours in _PATTERNS:
        if match := pattern.match(name):
            return ours.format(*match.groups()) + name[match.end() :]
    return name
