"""A folder as ``transformers`` saves it."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from exporter.errors import CheckpointError
from exporter.model.sources import hub, lora
from exporter.model.sources.adapter import is_adapter
from exporter.model.sources.classifier import NAME as CLASSIFIER
from exporter.model.sources.classifier import read_classifier
from exporter.model.sources.loaded import Weights
from exporter.model.sources.names import hugging_face_names, to_fair_esm
from exporter.model.sources.naming import cached_snapshot, origin_of
from exporter.model.sources.settings import check_settings, check_vocabulary, read_json
from exporter.model.sources.sizes import check_sizes
from exporter.model.sources.tensor_files import (
    missing_weights,
    read_folder_tensors,
    some,
    weights_in,
)


def read_folder(folder: Path, file: str | None = None, with_head: bool = True) -> Weights:
    """ESM-2 of a folder with ``config.json``, or of an adapter of PEFT and its base.

    Args:
        folder: saved from ``EsmForMaskedLM``, ``EsmModel``, or a classifier.
        file: of its weights; None takes what ``transformers`` would take.
        with_head: False leaves a classifier out.

    Raises:
        CheckpointError: it is not a whole ESM-2, or it is not certain what it is.
        OSError: a file cannot be read.
    """
    formats = weights_in(folder)
    if is_adapter(folder, has_model=bool(formats)):
        return _read_adapter(folder, with_head)
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
    stored = read_folder_tensors(folder, name)
    weights = with_settings(stored, folder, folder, notes, with_head=with_head)
    # Of another file than the one that transformers takes there is nothing to ask it.
    return weights if name != formats[0] else replace(weights, folder=folder)


def has_settings(folder: Path) -> bool:
    """Whether ``folder`` holds a ``config.json`` of ``transformers``."""
    path = folder / "config.json"
    return path.is_file() and "model_type" in read_json(path)


def _read_adapter(folder: Path, with_head: bool) -> Weights:
    """The adapter's base with the adapter merged into it."""
    adapter = lora.read_adapter(folder)
    base = _base_of(adapter)
    if not weights_in(base) or not (base / "config.json").is_file():
        raise CheckpointError(
            f"the base {adapter.base} of the adapter {folder} is no whole model: expected a folder "
            "with config.json and model.safetensors"
        )
    stored = read_folder_tensors(base, weights_in(base)[0])
    merged, entry = lora.merge(adapter, hugging_face_names(stored, str(base)), adapter.base)
    own = folder / "config.json"
    config = read_json(own) if own.is_file() else read_json(base / "config.json")
    if adapter.class_name is not None:
        config["architectures"] = [adapter.class_name]
    left_out = []
    if config.get("architectures") != ["EsmForMaskedLM"]:
        # The class that was trained has none, and what it is good for after training is not known.
        left_out = ["lm_head"] if any(name.startswith("lm_head.") for name in merged) else []
        merged = {name: x for name, x in merged.items() if not name.startswith("lm_head.")}
    notes = [f"LoRA of rank {entry.rank} merged into {adapter.base}: {', '.join(entry.targets)}"]
    weights = with_settings(merged, base, folder, notes, config, with_head)
    return replace(
        weights, left_out=(*weights.left_out, *left_out), adapter=entry, folder=base,
        adapter_folder=folder,
    )  # fmt: skip


def _base_of(adapter: lora.Adapter) -> Path:
    path = Path(adapter.base).expanduser()
    if path.is_dir():
        return cached_snapshot(path)
    if found := hub.name_on_hub(adapter.base):
        return hub.snapshot(*found)
    raise CheckpointError(
        f"the base {adapter.base} of the adapter {adapter.folder} is no folder here, and no name "
        f"on the Hugging Face Hub. Correct base_model_name_or_path in its {lora.CONFIG}"
    )


def with_settings(
    stored: dict[str, Tensor], folder: Path, path: Path, notes: Iterable[str] = (),
    config: dict[str, Any] | None = None, with_head: bool = True,
) -> Weights:  # fmt: skip
    """ESM-2 of tensors under their own names, with the settings that lie in ``folder``.

    Args:
        stored: what ``path`` holds.
        folder: with ``config.json``.
        path: the folder, or a file in it.
        notes: for the user.
        config: in place of ``config.json``.
        with_head: False leaves a classifier out.

    Raises:
        CheckpointError: the settings are not ESM-2's, or not those of the tensors.
    """
    config = read_json(folder / "config.json") if config is None else config
    shape, token_dropout = check_settings(config, folder)
    check_vocabulary(folder)
    head, said = read_classifier(stored, config, str(path)) if with_head else (None, [])
    state, left_out = to_fair_esm(stored, str(path))
    tensors = {**_frequencies(stored), **state}
    check_sizes(tensors, shape, str(path), "config.json", config.get("vocab_size"))
    _check_class(config.get("architectures"), state, path)
    notes = [*notes, *said]
    if head is not None:
        left_out.remove(CLASSIFIER)
    if not token_dropout:
        notes.append(
            "config.json has token_dropout false: embeddings are not scaled, as transformers does "
            "it. Every published ESM-2 has true"
        )
    source, revision = origin_of(path)
    return Weights(
        shape, token_dropout, state, "huggingface", source, revision, tuple(left_out), tuple(notes),
        head=head,
    )  # fmt: skip


def _frequencies(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in stored.items() if name.endswith("inv_freq")}


def _check_class(classes: object, state: dict[str, Tensor], folder: Path) -> None:
    has_head = any(name.startswith("lm_head.") for name in state)
    if classes == ["EsmForMaskedLM"] and not has_head:
        raise CheckpointError(
            f"{folder} contradicts itself: config.json says EsmForMaskedLM, the weights hold no LM "
            "head. For embeddings alone, say EsmModel under 'architectures'"
        )
