"""PyTorch's pickled files, read without running what they ask for."""

import argparse
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from exporter.errors import CheckpointError


def unpickle(path: Path) -> Any:
    """What ``torch.save`` wrote: tensors, containers and ``argparse.Namespace``, nothing else.

    Raises:
        CheckpointError: not such a file, damaged, or it asks for other classes.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(512)
    head = start.lstrip().lower()
    if not head:
        raise CheckpointError(f"{path} is empty")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page, not a checkpoint: download the file itself")
    if is_lfs_pointer(start):
        raise CheckpointError(
            f"{path} is not a PyTorch checkpoint but a pointer of Git LFS: fetch the file itself "
            "with 'git lfs pull'"
        )
    is_zip = start.startswith(b"PK\x03\x04")
    try:
        # Checkpoints hold their settings as a Namespace: allow that class, and nothing else.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError:
        raise
    except Exception as error:  # the unpickler's opcodes fail on foreign bytes in any way
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and blocked:
            raise CheckpointError(
                f"{path} is refused: it asks to load more than tensors and settings "
                f"({blocked.group(1)}), which can run code. Where you trust it, load it with "
                "PyTorch and save the model's state_dict() alone"
            ) from None
        what = (
            "a truncated or damaged checkpoint: fetch it again"
            if is_zip
            else "not a PyTorch checkpoint: give a .pt or .safetensors file, or a folder of "
            "transformers"
        )
        raise CheckpointError(f"{path} is {what} ({type(error).__name__})") from None


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file's first bytes are what Git leaves where LFS is not installed."""
    return start.startswith(b"version https://git-lfs")
