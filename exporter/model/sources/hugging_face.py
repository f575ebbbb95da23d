"""A folder as ``transformers`` saves it."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from exporter.errors import CheckpointError
from exporter.model.sources.adapter import refuse_adapter
from exporter.model.sources.loaded import Weights
from exporter.model.sources.names import to_fair_esm
from exporter.model.sources.naming import origin_of
from exporter.model.sources.settings import check_settings, check_vocabulary, read_json
from exporter.model.sources.sizes import check_sizes
from exporter.model.sources.tensor_files import (
    missing_weights,
    read_folder_tensors,
    some,
    weights_in,
)


def read_folder(folder: Path, file: str | None = None) -> Weights:
    """ESM-2 of a folder with ``config.json``.

    Args:
        folder: saved from ``EsmForMaskedLM``, ``EsmModel``, or with the head of a classifier, which
            is left out.
        file: of its weights; None takes what ``transformers`` would take.

    Raises:
        CheckpointError: it is not a whole ESM-2, or it is not certain what it is.
        OSError: a file cannot be read.
    """
    formats = weights_in(folder)
    refuse_adapter(folder, has_model=bool(formats))
    if not (folder / "config.json").is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        advice = (
            f"one of the folders in it: {some(inside)}"
            if inside
            else "a folder that save_pretrained wrote, or a fair-esm .pt file"
        )
        raise CheckpointError(
            f"{folder} is not a Hugging Face model: it holds no config.json. Give {advice}"
        )
    check_settings(read_json(folder / "config.json"), folder)
    if file is None and not formats:
        raise CheckpointError(missing_weights(folder))
    name = file or formats[0]
    notes = [f"{folder} holds {' and '.join(formats)}: {name} is read"] if len(formats) > 1 else []
    weights = with_settings(read_folder_tensors(folder, name), folder, folder, notes)
    # Of another file than the one that transformers takes there is nothing to ask it.
    return weights if name != formats[0] else replace(weights, folder=folder)


def has_settings(folder: Path) -> bool:
    """Whether ``folder`` holds a ``config.json`` of ``transformers``."""
    path = folder / "config.json"
    return path.is_file() and "model_type" in read_json(path)


def with_settings(
    stored: dict[str, Tensor], folder: Path, path: Path, notes: Iterable[str] = ()
) -> Weights:
    """ESM-2 of tensors under their own names, with the settings that lie in ``folder``.

    Args:
        stored: what ``path`` holds.
        folder: with ``config.json``.
        path: the folder, or a file in it.
        notes: for the user.

    Raises:
        CheckpointError: the settings are not ESM-2's, or not those of the tensors.
    """
    config = read_json(folder / "config.json")
    shape, token_dropout = check_settings(config, folder)
    check_vocabulary(folder)
    state, left_out = to_fair_esm(stored, str(path))
    tensors = {**_frequencies(stored), **state}
    check_sizes(tensors, shape, str(path), "config.json", config.get("vocab_size"))
    _check_class(config.get("architectures"), state, path)
    notes = list(notes)
    if not token_dropout:
        notes.append(
            "config.json has token_dropout false: embeddings are not scaled, as transformers does "
            "it. Every published ESM-2 has true"
        )
    source, revision = origin_of(path)
    return Weights(
        shape, token_dropout, state, "huggingface", source, revision, tuple(left_out), tuple(notes)
    )


def _frequencies(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in stored.items() if name.endswith("inv_freq")}


def _check_class(classes: object, state: dict[str, Tensor], folder: Path) -> None:
    has_head = any(name.startswith("lm_head.") for name in state)
    if classes == ["EsmForMaskedLM"] and not has_head:
        raise CheckpointError(
            f"{folder} contradicts itself: config.json says EsmForMaskedLM, the weights hold no LM "
            "head. For embeddings alone, say EsmModel under 'architectures'"
        )
