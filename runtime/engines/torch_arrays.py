"""What the engines that PyTorch runs share: packs to tensors, tensors to arrays, its errors."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import EngineError
from runtime.packing import PackedBatch

if TYPE_CHECKING:
    import torch


def missing_library() -> str | None:
    """What to install, or None."""
    for package in ("torch", "safetensors"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed (pip install 'esm2-engines[torch]')"
    return None


def read_weights(folder: Path, device: str) -> "dict[str, torch.Tensor]":
    """``weights.safetensors``; on the CPU mapped, not copied.

    Raises:
        OSError: missing, or not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / "weights.safetensors", device)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def inputs_of(batch: PackedBatch, device: str) -> "list[torch.Tensor]":
    """``input_ids``, ``cu_seqlens`` on the device, and ``max_seqlen`` on the host."""
    import torch

    return [
        torch.from_numpy(batch.input_ids).to(device),
        torch.from_numpy(batch.cu_seqlens).to(device),
        torch.tensor(batch.max_seqlen),
    ]


def to_arrays(tensors: "Iterable[torch.Tensor]") -> list[NDArray[Any]]:
    """On the host. NumPy has no bfloat16; float32 holds every bfloat16 exactly."""
    import torch

    wide = [t.float() if t.dtype == torch.bfloat16 else t for t in tensors]
    arrays: list[NDArray[np.floating]] = [t.cpu().numpy() for t in wide]
    return arrays


def failure(batch: PackedBatch, error: Exception) -> EngineError:
    """What to raise when PyTorch failed on ``batch``."""
    return EngineError(
        f"torch failed on a pack of {batch.num_proteins} proteins, "
        f"{batch.num_tokens} tokens: {cause(error)}"
    )


def cause(error: Exception) -> str:
    """The line of PyTorch's message that says what happened; TorchScript puts its trace before."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    telling = [line for line in lines if "Error: " in line or "error: " in line]
    return (telling or lines)[0].strip()
