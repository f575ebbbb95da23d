"""fair-esm's own files, by the name of a model or as a path."""

import urllib.error
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporter.errors import CheckpointError
from exporter.model.architectures import checked_shape, known_architecture
from exporter.model.sources.loaded import Weights
from exporter.model.sources.names import to_fair_esm
from exporter.model.sources.naming import origin_of
from exporter.model.sources.pickles import unpickle
from exporter.model.sources.sizes import check_sizes
from exporter.model.sources.tensor_files import checked_state

# esm/pretrained.py:62, 47 and 73.
DOWNLOAD_URL = "https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt"
CONTACTS_URL = "https://dl.fbaipublicfiles.com/fair-esm/regression/{file}"
CONTACTS_SUFFIX = "-contact-regression.pt"


def read_model(name: str, contacts: bool = False) -> Weights:
    """A model by fair-esm's name, from fair-esm's (torch.hub's) cache or downloaded into it.

    Args:
        name: fair-esm's.
        contacts: the contact head's file, too.

    Raises:
        CheckpointError: no such model, or it cannot be downloaded.
        OSError: the file cannot be read.
    """
    known_architecture(name)
    path = model_file(name)
    _downloaded(DOWNLOAD_URL.format(name=name), path)
    if contacts:
        beside = contact_file(path)
        _downloaded(CONTACTS_URL.format(file=beside.name), beside)
    return read_contents(unpickle(path), path, "model")


def model_file(name: str) -> Path:
    """Where fair-esm, by torch.hub, keeps a model."""
    return Path(torch.hub.get_dir()) / "checkpoints" / f"{name}.pt"


def _downloaded(url: str, path: Path) -> None:
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path))
    except (OSError, urllib.error.URLError) as error:
        raise CheckpointError(
            f"cannot download {url}: {error}. Download it elsewhere and put it at {path}, "
            "or pass the checkpoint with --checkpoint"
        ) from None


def contact_file(checkpoint: Path) -> Path:
    """Where fair-esm keeps the contact head of a checkpoint: beside it."""
    return checkpoint.with_name(checkpoint.stem + CONTACTS_SUFFIX)


def _contact_head(checkpoint: Path) -> dict[str, Tensor]:
    path = contact_file(checkpoint)
    if not path.is_file():
        return {}
    contents = unpickle(path)
    if not isinstance(contents, dict) or "model" not in contents:
        raise CheckpointError(f"{path} is not a contact head of fair-esm: it holds no 'model'")
    return checked_state(contents["model"], str(path))


def is_fair_esm(contents: Any) -> bool:
    """Whether a pickled file holds what fair-esm's do: settings and a model."""
    return isinstance(contents, dict) and {"cfg", "model"} <= contents.keys()


def read_contents(contents: Any, path: Path, kind: str = "checkpoint") -> Weights:
    """ESM-2 of a file with fair-esm's settings.

    Raises:
        CheckpointError: it is another model, or not whole.
    """
    if not is_fair_esm(contents):
        raise CheckpointError(f"{path} is not fair-esm's: no settings ('cfg') and no 'model'")
    try:
        config = contents["cfg"]["model"]
        shape = checked_shape(
            config.encoder_layers, config.encoder_embed_dim, config.encoder_attention_heads
        )
        token_dropout = bool(config.token_dropout)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not an ESM-2 checkpoint of fair-esm: {error}") from None
    state, left_out = to_fair_esm(checked_state(contents["model"], str(path)), str(path))
    check_sizes(state, shape, str(path), "cfg")
    state |= _contact_head(path)
    source, _ = origin_of(path)
    return Weights(
        shape, token_dropout, state, kind, source, left_out=tuple(left_out), contents=contents
    )
