"""Adapters of PEFT where they are not merged: beside a whole model, or wrapped in its weights."""

import re
from collections.abc import Iterable
from pathlib import Path

from exporter.errors import CheckpointError
from exporter.model.sources.settings import read_json

FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")

# What PEFT's kinds of adapters (LoRA, DoRA, IA3, VeRA, OFT, prompts) put into a model's names.
_MARKERS = re.compile(
    r"(^|\.)(lora_\w+|ia3_l|vera_lambda_\w|hada_w\d_\w|oft_\w+|boft_\w+|prompt_encoder"
    r"|base_layer|modules_to_save|original_module)(\.|$)"
)


def is_adapter(folder: Path, has_model: bool) -> bool:
    """Whether ``folder`` holds an adapter of PEFT (``exporter.model.sources.lora``).

    Raises:
        CheckpointError: it holds a whole model too.
    """
    found = [name for name in FILES if (folder / name).exists()]
    if found and has_model:
        base = ""
        if found[0] == FILES[0]:
            named = read_json(folder / FILES[0]).get("base_model_name_or_path")
            base = f" for {named}" if named else ""
        raise CheckpointError(
            f"{folder} holds a whole model and a LoRA (PEFT) adapter{base} ({', '.join(found)}): "
            "it is not certain which is meant. For the model alone, move the adapter's files "
            "away; for both, give a folder with the adapter's files alone"
        )
    return bool(found)


def refuse_adapter_tensors(names: Iterable[str], label: str) -> None:
    """Raises CheckpointError where tensors are those of an adapter that was not merged."""
    marked = [name for name in names if _MARKERS.search(name)]
    if marked:
        raise CheckpointError(
            f"{label} holds {len(marked)} tensors of an adapter (PEFT) that was not merged, first "
            f"{marked[0]}. Merge it: model.merge_and_unload().save_pretrained(FOLDER), and give "
            "FOLDER"
        )
