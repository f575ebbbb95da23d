"""A model of the Hugging Face Hub by its name, downloaded or from the cache."""

import re
from pathlib import Path

from exporter.errors import CheckpointError

_NAME = re.compile(
    r"(?:https?://huggingface\.co/|hf://)?"
    r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:(?:@|/tree/)(?P<revision>[\w][\w./-]*))?/?",
    re.ASCII,
)
_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json", ".zip", ".tar", ".gz")

_SETTINGS = ["config.json", "vocab.txt", "adapter_config.json"]
_ADAPTER = ["adapter_model.safetensors", "adapter_model.bin"]
_SAFETENSORS = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
_PICKLES = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"]


def name_on_hub(text: str) -> tuple[str, str | None] | None:
    """``(ORG/NAME, revision)`` of ``ORG/NAME[@REVISION]`` or the model's page; None otherwise."""
    match = _NAME.fullmatch(text)
    if match is None or match["repository"].endswith(_FILES):
        return None
    return match["repository"], match["revision"]


def snapshot(repository: str, revision: str | None) -> Path:
    """The folder of a model in Hugging Face's cache, with what ESM-2 needs.

    ``HF_HOME``, ``HF_HUB_OFFLINE`` and ``HF_TOKEN`` are huggingface_hub's own. Pickled weights are
    fetched only where there are no safetensors.

    Raises:
        CheckpointError: not on the Hub, not allowed, or neither reachable nor in the cache.
    """
    folder = _fetch(repository, revision, [*_SETTINGS, *_SAFETENSORS, *_ADAPTER])
    if not any(folder.glob("*model*.safetensors")):
        folder = _fetch(repository, revision, [*_SETTINGS, *_PICKLES])
    return folder


def _fetch(repository: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise CheckpointError(
            f"{repository} is no file or folder here, and the Hugging Face Hub needs "
            "huggingface_hub: pip install huggingface_hub, or give the model's folder"
        ) from None
    what = f"{repository}@{revision}" if revision else repository
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        raise CheckpointError(
            f"{what} is gated: accept its terms on https://huggingface.co/{repository} and log in "
            "with 'hf auth login', or set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{repository} has no revision {revision!r} on the Hub") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{what} is no file or folder here, and no model on the Hugging Face Hub that you may "
            "read: check the name, or log in with 'hf auth login' where it is private"
        ) from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{what} is no file or folder here, not in Hugging Face's cache, and the Hub was not "
            "reached (no network, or HF_HUB_OFFLINE). Download it elsewhere with "
            f"'hf download {repository}' and give the folder"
        ) from None
    except Exception as error:  # the HTTP library's classes change between versions
        first = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"cannot get {what} from the Hugging Face Hub: {type(error).__name__} {first}. "
            f"Download it elsewhere with 'hf download {repository}' and give the folder"
        ) from None
