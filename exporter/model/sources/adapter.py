"""LoRA and other adapters of PEFT: weights that mean nothing without the model below them."""

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
_MERGE = (
    "Merge it: PeftModel.from_pretrained(BASE, ADAPTER).merge_and_unload().save_pretrained(FOLDER),"
    " and give FOLDER"
)


def refuse_adapter(folder: Path, has_model: bool) -> None:
    """Raises CheckpointError where ``folder`` holds an adapter, alone or beside a full model."""
    found = [name for name in FILES if (folder / name).exists()]
    if not found:
        return
    base = ""
    if found[0] == FILES[0]:
        named = read_json(folder / FILES[0]).get("base_model_name_or_path")
        base = f" for {named}" if named else ""
    if not has_model:
        raise CheckpointError(
            f"{folder} is a LoRA (PEFT) adapter{base}, not a whole model: it holds {found[0]} and "
            f"no base weights. {_MERGE}"
        )
    raise CheckpointError(
        f"{folder} holds a whole model and a LoRA (PEFT) adapter{base} ({', '.join(found)}): it is "
        f"not certain which is meant. For the model alone, move the adapter's files away. {_MERGE}"
    )


def refuse_adapter_tensors(names: Iterable[str], label: str) -> None:
    """Raises CheckpointError where tensors are those of an adapter that was not merged."""
    marked = [name for name in names if _MARKERS.search(name)]
    if marked:
        raise CheckpointError(
            f"{label} holds {len(marked)} tensors of an adapter (PEFT) that was not merged, first "
            f"{marked[0]}. Merge it: model.merge_and_unload().save_pretrained(FOLDER), and give "
            "FOLDER"
        )
