"""Finds out what a user's path or name is, and reads it."""

import difflib
from pathlib import Path

from torch import Tensor

from exporter.errors import CheckpointError
from exporter.model.architectures import ARCHITECTURES
from exporter.model.sources import fair_esm, hub, naming
from exporter.model.sources.hugging_face import has_settings, read_folder, with_settings
from exporter.model.sources.loaded import Weights
from exporter.model.sources.names import is_fair_esms
from exporter.model.sources.pickles import unpickle
from exporter.model.sources.state_dict import parameters_in, read_state_dict
from exporter.model.sources.tensor_files import (
    FORMATS,
    INDEX,
    checked_state,
    is_safetensors,
    read_tensors,
)


def read(value: str, named: bool, with_head: bool = True, contacts: bool = False) -> Weights:
    """ESM-2 by a path, by fair-esm's name, or by its name on the Hugging Face Hub.

    Args:
        value: what the user gave.
        named: fair-esm's name goes before a file of that name.
        with_head: False leaves a classifier out.
        contacts: the contact head's weights, too, where they are in a file of their own.

    Raises:
        CheckpointError: one line that says what is wrong, and what to do.
    """
    path = Path(value).expanduser()
    try:
        if value in ARCHITECTURES and (named or not path.exists()):
            return fair_esm.read_model(value, contacts)
        if value and path.exists():
            return _read_path(path, with_head)
        if found := hub.name_on_hub(value):
            return read_folder(hub.snapshot(*found), with_head=with_head)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {error.filename or value}: {error.strerror or error}"
        ) from None
    raise CheckpointError(_unknown(value, named))


def _read_path(path: Path, with_head: bool) -> Weights:
    if path.is_dir():
        if (path / "manifest.json").is_file():
            raise CheckpointError(
                f"{path} is an artifact: give the checkpoint that it was built from"
            )
        return read_folder(naming.cached_snapshot(path), with_head=with_head)
    if path.name.endswith(INDEX) or (path.name in FORMATS and has_settings(path.parent)):
        return read_folder(path.parent, path.name, with_head)
    if path.name == "config.json":
        raise CheckpointError(f"{path} holds settings alone: give its folder, {path.parent}")
    if is_safetensors(path):
        return _bare(read_tensors(path), path, with_head)
    contents = unpickle(path)
    if fair_esm.is_fair_esm(contents):
        return fair_esm.read_contents(contents, path)
    return _bare(checked_state(parameters_in(contents, path), str(path)), path, with_head)


def _bare(stored: dict[str, Tensor], path: Path, with_head: bool) -> Weights:
    if has_settings(path.parent) and not is_fair_esms(stored):
        return with_settings(stored, path.parent, path, with_head=with_head)
    return read_state_dict(stored, path)


def _unknown(value: str, named: bool) -> str:
    near = difflib.get_close_matches(value, ARCHITECTURES, n=1)
    meant = f". Did you mean {near[0]}?" if near else ""
    if named:
        return f"unknown model {value!r}, expected one of {', '.join(ARCHITECTURES)}{meant}"
    return (
        f"cannot read {value}: no such file or folder, and no name of a model on the Hugging Face "
        f"Hub (ORGANISATION/NAME) or of fair-esm's{meant}"
    )
