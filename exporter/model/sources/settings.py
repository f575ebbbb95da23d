"""``config.json`` of ``transformers``: what it must say to be an ESM-2."""

import json
from pathlib import Path
from typing import Any

from exporter.errors import CheckpointError
from exporter.model.architectures import Shape, checked_shape
from runtime.tokenizer import TOKENS

# What fair-esm's ESM-2 computes; a folder with anything else is another model.
CONFIG = {
    "model_type": "esm",
    "position_embedding_type": "rotary",
    "layer_norm_eps": 1e-5,
    "emb_layer_norm_before": False,
}

# The same, of settings that not every version of transformers writes.
IF_GIVEN = {
    "hidden_act": "gelu",
    "is_folding_model": False,
    "esmfold_config": None,
    "is_decoder": False,
    "add_cross_attention": False,
    "pad_token_id": TOKENS.index("<pad>"),
    "mask_token_id": TOKENS.index("<mask>"),
    "rope_theta": 10000.0,
    "rope_type": "default",
    "rope_scaling": None,
    "quantization_config": None,
    "vocab_list": None,
}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: it is no such file.
        OSError: it cannot be read.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error})") from None
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path} does not hold a model's settings")
    return contents


def check_settings(config: dict[str, Any], folder: Path) -> tuple[Shape, bool]:
    """Shape and token dropout of the ESM-2 that ``config`` describes.

    Raises:
        CheckpointError: it describes another model; names every setting, both values of each.
    """
    rotary = config.get("rope_parameters")
    config = {**config, **rotary} if isinstance(rotary, dict) else config
    wrong = [
        _differing(key, config.get(key), value)
        for key, value in CONFIG.items()
        # transformers takes a missing emb_layer_norm_before as False.
        if config.get(key) != value and (config.get(key) or value)
    ]
    wrong += [
        _differing(key, config[key], value)
        for key, value in IF_GIVEN.items()
        if config.get(key, value) != value and not (key == "vocab_list" and _is_ours(config[key]))
    ]
    if wrong:
        raise CheckpointError(f"{folder} is not ESM-2: config.json has {', '.join(wrong)}")
    try:
        shape = checked_shape(
            config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]
        )
    except KeyError as error:
        raise CheckpointError(
            f"{folder} is not a whole Hugging Face model: config.json does not say {error}"
        ) from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is not a whole Hugging Face model: config.json says that {error}"
        ) from None
    hidden = config.get("intermediate_size", 4 * shape[1])
    if hidden != 4 * shape[1]:
        wrong.append(_differing("intermediate_size", hidden, 4 * shape[1]))
    token_dropout = config.get("token_dropout")
    if not isinstance(token_dropout, bool):
        # transformers would take it as false; every published ESM-2 has true: 12 % apart.
        wrong.append(f"token_dropout {token_dropout!r} instead of true (or false, if it was)")
    if wrong:
        raise CheckpointError(f"{folder} is not ESM-2: config.json has {', '.join(wrong)}")
    return shape, bool(token_dropout)


def check_vocabulary(folder: Path) -> None:
    """Raises CheckpointError where the folder's tokenizer has other ids than ESM-2's."""
    path = folder / "vocab.txt"
    if not path.is_file():
        return
    try:
        tokens = path.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not a list of tokens ({error})") from None
    if tokens == list(TOKENS):
        return
    pairs = enumerate(zip(tokens, TOKENS, strict=False))
    place = next((i for i, (theirs, ours) in pairs if theirs != ours), None)
    what = (
        f"it holds {len(tokens)} tokens, ESM-2 has {len(TOKENS)}"
        if place is None
        else f"id {place} is {tokens[place]!r}, ESM-2's is {TOKENS[place]!r}"
    )
    raise CheckpointError(
        f"{path} is not ESM-2's vocabulary: {what}. The runtime would give this model other "
        "tokens than it was trained with"
    )


def _differing(key: str, theirs: Any, ours: Any) -> str:
    text = repr(theirs)
    return f"{key} {text if len(text) <= 60 else text[:57] + '...'} instead of {ours!r}"


def _is_ours(vocabulary: Any) -> bool:
    return isinstance(vocabulary, list) and vocabulary == list(TOKENS)
