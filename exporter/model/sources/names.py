"""Names of parameters: ``transformers``' as a table, and what wraps a model that is saved."""

import re
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from exporter.errors import CheckpointError
from exporter.model.sources.adapter import refuse_adapter_tensors

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
# transformers 5's one entry, in files literally with a star, for frequencies that a formula gives.
UNUSED = re.compile(
    r"esm\.embeddings\.position_(embeddings|ids)|lm_head\.decoder\.bias"
    r"|esm\.(encoder\.layer\.\*\.attention\.self\.)?rotary_embeddings\.inv_freq"
)

FAIR_ESM_TABLE = "embed_tokens.weight"
HUGGING_FACE_TABLE = "esm.embeddings.word_embeddings.weight"

# Of EsmModel, which its heads' classes hold as "esm".
_BASE = re.compile(r"^(embeddings|encoder|pooler|contact_head|rotary_embeddings)(?=\.)")
# Heads of transformers' classes: for classes of a protein or a token, questions; and the pooler.
_HEADS = re.compile(r"(classifier|qa_outputs|esm\.pooler)\.")
# Put inside names by torch.compile, FSDP and activation checkpointing.
_INSERTED = re.compile(
    r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
)


def _patterns(renames: Mapping[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [
        (re.compile(re.escape(old).replace(r"\{\}", r"(\d+)") + r"(?=\.|$)"), new)
        for old, new in renames.items()
    ]


_PATTERNS = _patterns(RENAMES)
_PATTERNS_BACK = _patterns({ours: theirs for theirs, ours in RENAMES.items()})


def to_fair_esm(stored: Mapping[str, Tensor], label: str) -> tuple[dict[str, Tensor], list[str]]:
    """Parameters under fair-esm's names, whatever wrapped the model that they were saved from.

    Args:
        stored: as saved from fair-esm's model or one of ``transformers``' ESM classes.
        label: of the checkpoint, for errors.

    Returns:
        The parameters, and the parts of the checkpoint that ESM-2 does not have: ``classifier``,
        ``pooler``.

    Raises:
        CheckpointError: the tensors are an adapter's, or it is not certain which of them are ESM-2.
    """
    refuse_adapter_tensors(stored, label)
    state = _without_wrappers(stored, label)
    names = {name.removeprefix("sentence_encoder.") for name in state}
    if FAIR_ESM_TABLE in names:
        renamed = {name.removeprefix("sentence_encoder."): t for name, t in state.items()}
        return renamed, []
    if HUGGING_FACE_TABLE.removeprefix("esm.") in names:
        # Saved from the base model.
        state = {_BASE.sub(r"esm.\1", name): tensor for name, tensor in state.items()}
    if HUGGING_FACE_TABLE not in state:
        raise CheckpointError(f"{label} {_why_not(list(state))}")
    heads = {name: match.group(1) for name in state if (match := _HEADS.match(name))}
    body = {name: tensor for name, tensor in state.items() if name not in heads}
    return rename_to_fair_esm(body), sorted({name.removeprefix("esm.") for name in heads.values()})


def hugging_face_names(stored: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    """Parameters as a class of ``transformers`` with a head names them, whatever wrapped it.

    Raises:
        CheckpointError: the tensors are an adapter's, or of two copies.
    """
    refuse_adapter_tensors(stored, label)
    state = _without_wrappers(stored, label)
    return {_BASE.sub(r"esm.\1", name): tensor for name, tensor in state.items()}


def is_fair_esms(stored: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of fair-esm's model, whatever stands before them."""
    return any(name == FAIR_ESM_TABLE or name.endswith(f".{FAIR_ESM_TABLE}") for name in stored)


def _without_wrappers(stored: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    """Without what DataParallel, torch.compile, Lightning, PEFT put before every name."""
    state = {_INSERTED.sub(r"\1", name): tensor for name, tensor in stored.items()}
    if len(state) < len(stored):
        raise CheckpointError(f"{label} holds a compiled and a plain copy of the same parameters")
    while state and all("." in name for name in state):
        first = {name.partition(".")[0] for name in state}
        # A prefix that all share belongs to no part of the model, but to what held the model.
        if len(first) > 1:
            break
        state = {name.partition(".")[2]: tensor for name, tensor in state.items()}
    return state


def _why_not(names: list[str]) -> str:
    tables = (HUGGING_FACE_TABLE.removeprefix("esm."), FAIR_ESM_TABLE)
    prefixes = {
        name.removesuffix(table).removesuffix("esm.")
        for table in tables
        for name in names
        if name.endswith(f".{table}")
    }
    if not prefixes:
        return f"does not fit ESM-2: no embedding table among its tensors ({_some(names)})"
    if len(prefixes) > 1:
        found = _some(sorted(map(repr, prefixes)))
        return f"holds {len(prefixes)} copies of ESM-2, under {found}: save the one that is meant"
    prefix = prefixes.pop()
    outside = [name for name in names if not name.startswith(prefix)]
    return (
        f"holds an ESM-2 under {prefix!r} and {len(outside)} tensors elsewhere ({_some(outside)}): "
        "what they do to it is not certain. Save the ESM-2 alone, with save_pretrained or as its "
        "state_dict()"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


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
