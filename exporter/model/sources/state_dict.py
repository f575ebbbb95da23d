"""Parameters without settings: a state dict of PyTorch, Lightning's ``.ckpt``, one safetensors."""

from pathlib import Path
from typing import Any

from torch import Tensor

from exporter.errors import CheckpointError
from exporter.model.architectures import ARCHITECTURES
from exporter.model.sources.loaded import Weights
from exporter.model.sources.names import is_fair_esms, to_fair_esm
from exporter.model.sources.naming import origin_of
from exporter.model.sources.sizes import shape_of
from exporter.model.sources.tensor_files import some

# Under which trainers keep the parameters, beside optimizers and counters.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "module")


def parameters_in(contents: Any, path: Path) -> Any:
    """The state dict among what a trainer saved.

    Raises:
        CheckpointError: there is none, or it is of an ESM-1 model.
    """
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path} holds a {type(contents).__name__}, not a checkpoint")
    if arch := getattr(contents.get("args"), "arch", None):
        raise CheckpointError(
            f"{path} is not an ESM-2 checkpoint: it holds an ESM-1 model ({arch})"
        )
    for key in _CONTAINERS:
        if isinstance(contents.get(key), dict):
            return contents[key]
    if contents and all(isinstance(value, Tensor) for value in contents.values()):
        return contents
    raise CheckpointError(
        f"{path} is not an ESM-2 checkpoint: it holds a dictionary of {some(contents) or 'nothing'}"
        ", expected the keys 'cfg' and 'model' of fair-esm, or a state dict"
    )


def read_state_dict(stored: dict[str, Tensor], path: Path) -> Weights:
    """ESM-2 whose sizes are read off its tensors.

    Token dropout leaves no trace in them. It is fair-esm's default, and every published ESM-2 has
    it; transformers' default is none. So it is taken as on for fair-esm's names and for sizes of a
    published model, and is not guessed for others.

    Raises:
        CheckpointError: not ESM-2, or its settings are not certain.
    """
    state, left_out = to_fair_esm(stored, str(path))
    shape = shape_of(state, str(path))
    by_default = is_fair_esms(stored)
    if not by_default and shape not in ARCHITECTURES.values():
        raise CheckpointError(
            f"{path} does not say whether it has token dropout, and no published ESM-2 has its "
            f"{shape[0]} layers of {shape[1]}. Put its config.json beside it, or save it with "
            "save_pretrained"
        )
    note = (
        f"{path.name} holds no settings: {shape[2]} heads and token dropout are taken, as in "
        + ("fair-esm's own" if by_default else "the published model of this size")
    )
    source, _ = origin_of(path)
    return Weights(
        shape, True, state, "checkpoint", source, left_out=tuple(left_out), notes=(note,)
    )
