"""``weights.safetensors``: the parameters that every engine of an artifact reads, stored once."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from exporter.model.packed_forward import PackedESM2
from runtime.weights import FILE_NAME, read_places


def write(packed: PackedESM2, folder: Path) -> None:
    """Writes the parameters and the rotary frequencies of ``packed`` under fair-esm's names."""
    save(packed.state_dict(), folder / FILE_NAME)


def save(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file that is as readable as its folder."""
    save_file(tensors, path)
    # The library writes through a private temporary file.
    path.chmod(path.parent.stat().st_mode & 0o666)


def overwrite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replaces tensors of a safetensors file in place; dtypes and shapes are the file's."""
    places = read_places(path)
    with path.open("r+b") as file:
        for name, tensor in tensors.items():
            data = tensor.contiguous().view(-1).view(torch.uint8)
            file.seek(places[name].offset)
            file.write(data.numpy().tobytes())


def differences(packed: PackedESM2, folder: Path, dtype: torch.dtype) -> list[str]:
    """Which tensors of the file are not the parameters of ``packed``, bit by bit; in sentences.

    Args:
        packed: in float32.
        folder: the artifact.
        dtype: to which its parameters are rounded; the rotary frequencies are not.
    """
    expected = packed.state_dict()
    found = []
    with safe_open(folder / FILE_NAME, "pt") as file:
        stored = set(file.keys())
        found += [f"{name} is missing" for name in expected if name not in stored]
        found += [f"{name} is unknown" for name in sorted(stored - set(expected))]
        for name in (name for name in expected if name in stored):
            tensor = file.get_tensor(name)
            whole = expected[name]
            wanted = whole if name == "inv_freq" else whole.to(dtype)
            if tensor.dtype != wanted.dtype or not torch.equal(tensor, wanted):
                found.append(f"{name} differs")
    return found


def not_finite(folder: Path) -> list[str]:
    """The names of the tensors with NaN or Inf."""
    with safe_open(folder / FILE_NAME, "pt") as file:
        return [name for name in sorted(file.keys()) if not file.get_tensor(name).isfinite().all()]
