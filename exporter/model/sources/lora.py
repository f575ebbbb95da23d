"""A LoRA adapter of PEFT: merged into the model that it was trained on.

Source: Hu et al., "LoRA" (arXiv:2106.09685); PEFT 0.21, tuners/lora: ``W + B A * alpha / rank``.
The product is taken in float64 and rounded once, to the weights' float32.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from exporter.errors import CheckpointError
from exporter.model.sources.settings import read_json
from exporter.model.sources.tensor_files import read_tensors, some
from runtime.manifest_schema import AdapterEntry

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_SIDE = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
_NUMBER = re.compile(r"\.\d+\.")
# Of a head, or tied to another tensor: what they must be is seen where the model is filled.
_NOT_IN_EVERY_BASE = ("classifier.", "lm_head.")
# PEFT's task -> the class of transformers that it trains.
CLASSES = {
    "SEQ_CLS": "EsmForSequenceClassification",
    "TOKEN_CLS": "EsmForTokenClassification",
    "FEATURE_EXTRACTION": "EsmModel",
}
# Read here, or without meaning for the merged weights.
_KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
# Others than these change the base's own weights before training.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")
_ADVICE = (
    "Merge it where it was trained: model.merge_and_unload().save_pretrained(FOLDER), and give "
    "FOLDER"
)


@dataclass(frozen=True)
class Adapter:
    """What PEFT saved.

    Attributes:
        folder: of it.
        config: its settings.
        tensors: by the names of the model's modules, without PEFT's prefix.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def base(self) -> str:
        """The model that it was trained on: a path, or a name on the Hub."""
        name = str(self.config["base_model_name_or_path"])
        revision = self.config.get("revision")
        return f"{name}@{revision}" if revision and not Path(name).exists() else name

    @property
    def class_name(self) -> str | None:
        """Of transformers' class that was trained, where it is known."""
        mapping = self.config.get("auto_mapping") or {}
        return CLASSES.get(str(self.config.get("task_type"))) or mapping.get("base_model_class")


def read_adapter(folder: Path) -> Adapter:
    """An adapter that can be merged.

    Raises:
        CheckpointError: it cannot; names each setting and tensor that is in the way.
        OSError: a file cannot be read.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} holds weights of an adapter and no {CONFIG}, which says its scale. {_ADVICE}"
        )
    config = read_json(folder / CONFIG)
    if problems := _problems(config):
        raise CheckpointError(
            f"{folder} is an adapter that cannot be merged here: {', '.join(problems)}. {_ADVICE}"
        )
    files = [name for name in WEIGHTS if (folder / name).is_file()]
    if not files:
        raise CheckpointError(f"{folder} holds no {WEIGHTS[0]}: the adapter's weights are missing")
    stored = read_tensors(folder / files[0])
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in stored.items()}
    return Adapter(folder, config, tensors)


def merge(
    adapter: Adapter, stored: Mapping[str, Tensor], base: str
) -> tuple[dict[str, Tensor], AdapterEntry]:
    """The base's tensors with the adapter in them.

    Args:
        adapter: to merge.
        stored: of the base, under names that begin with ``esm.``, ``lm_head.``, ``classifier.``.
        base: the base's path or name, for errors.

    Raises:
        CheckpointError: a tensor that is no LoRA, or that the base has no place for.
    """
    config = adapter.config
    merged = dict(stored)
    sides: dict[str, dict[str, Tensor]] = {}
    replaced, foreign = set(), []
    for name, tensor in adapter.tensors.items():
        own = _as_whole(name)
        if match := _SIDE.fullmatch(own):
            sides.setdefault(match["module"], {})[match["side"]] = tensor
        elif "lora_" in own or not (own in merged or own.startswith(_NOT_IN_EVERY_BASE)):
            foreign.append(name)
        else:
            merged[own] = tensor
            replaced.add(own.rpartition(".")[0] if own.startswith("esm.") else own.split(".")[0])
    wrong = [name for name, pair in sides.items() if not _fits(pair, merged.get(f"{name}.weight"))]
    if foreign or wrong:
        raise CheckpointError(
            f"{adapter.folder} does not fit its base {base}: {some([*foreign, *wrong])} "
            f"{'have' if len(foreign) + len(wrong) > 1 else 'has'} no place in it, or another shape"
        )
    for module, pair in sides.items():
        weight = merged[f"{module}.weight"]
        delta = pair["B"].double() @ pair["A"].double() * _scale(config, module, len(pair["A"]))
        merged[f"{module}.weight"] = (weight.double() + delta).float()
    return merged, AdapterEntry(
        kind="LORA",
        base=str(config["base_model_name_or_path"]),
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        rslora=bool(config.get("use_rslora")),
        targets=sorted({_NUMBER.sub(".*.", module) for module in sides}),
        replaced=sorted(replaced),
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
    )


def _problems(config: Mapping[str, Any]) -> list[str]:
    if config.get("peft_type") != "LORA":
        return [f"peft_type {config.get('peft_type')!r} instead of 'LORA'"]
    found = [
        f"{name} {value!r}"
        for name, value in config.items()
        if value and name not in _KNOWN and not (name == "bias" and value == "none")
    ]
    initialised = config.get("init_lora_weights", True)
    if initialised not in _INITIALISATIONS:
        found.append(f"init_lora_weights {initialised!r}, which changes the base's weights")
    found += [f"no {name}" for name in ("r", "lora_alpha") if not config.get(name)]
    if not config.get("base_model_name_or_path"):
        found.append("no base_model_name_or_path: write the base model's folder or name there")
    return found


def _as_whole(name: str) -> str:
    """As in a class with a head, which holds ``EsmModel`` as ``esm``."""
    return f"esm.{name}" if name.startswith(("embeddings.", "encoder.", "contact_head.")) else name


def _fits(pair: Mapping[str, Tensor], weight: Tensor | None) -> bool:
    if weight is None or pair.keys() != {"A", "B"}:
        return False
    a, b = pair["A"], pair["B"]
    is_pair = a.ndim == b.ndim == weight.ndim == 2 and a.shape[0] == b.shape[1]
    return is_pair and [b.shape[0], a.shape[1]] == list(weight.shape)


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        # PEFT, utils/other.py, get_pattern_key: the first that a module's name ends with.
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
