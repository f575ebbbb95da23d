"""The tensors of a folder of ``transformers``: which files, and what is in them."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from exporter.errors import CheckpointError
from exporter.model.sources.pickles import is_lfs_pointer, unpickle
from exporter.model.sources.settings import read_json

# In the order in which transformers takes them.
FORMATS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX = ".index.json"
# Other libraries' formats, named where there is none of ours.
_FOREIGN = ("*.h5", "*.msgpack", "*.ckpt*", "*.gguf", "*.onnx", "*.pt", "*.pth", "*.safetensors")


def weights_in(folder: Path) -> list[str]:
    """Which of ``FORMATS`` the folder holds, the first being the one to read."""
    return [name for name in FORMATS if (folder / name).exists()]


def read_folder_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Tensors of ``name``, one of ``FORMATS`` or another file of tensors, under their own names.

    Raises:
        CheckpointError: a file is missing, damaged, outside the folder, or not of tensors.
        OSError: one cannot be read.
    """
    if not name.endswith(INDEX):
        return read_tensors(folder / name)
    state: dict[str, Tensor] = {}
    for shard in _shards(folder / name):
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder} holds no {shard}, which {name} names. Download it")
        state |= read_tensors(folder / shard)
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of one ``.safetensors`` file, or of a ``.bin`` that is a state dict.

    Raises:
        CheckpointError: damaged, or not of tensors.
        OSError: it cannot be read.
    """
    if is_safetensors(path):
        try:
            return load_file(path)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is truncated or damaged ({error})") from None
    return checked_state(unpickle(path), str(path))


def is_safetensors(path: Path) -> bool:
    """By name, or by what stands where safetensors has its header.

    Raises:
        CheckpointError: it is what Git leaves of a file without LFS, or empty.
    """
    with path.open("rb") as file:
        start = file.read(64)
    if path.suffix == ".safetensors":
        if not start:
            raise CheckpointError(f"{path} is empty")
        if is_lfs_pointer(start):
            raise CheckpointError(
                f"{path} is a pointer of Git LFS, not the file itself: fetch it with 'git lfs pull'"
            )
        return True
    return start[8:10] == b'{"'


def checked_state(contents: Any, label: str) -> dict[str, Tensor]:
    """``contents`` if it is a dictionary of tensors by name.

    Raises:
        CheckpointError: it is something else.
    """
    if not isinstance(contents, dict) or not contents:
        what = f"a {type(contents).__name__}" if contents else "nothing"
        raise CheckpointError(f"{label} holds {what}, expected tensors by name")
    foreign = [
        str(name)
        for name, value in contents.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if foreign:
        raise CheckpointError(f"{label} holds more than float tensors: {some(foreign)}")
    return contents


def missing_weights(folder: Path) -> str:
    """What to say of a folder without any of ``FORMATS``."""
    foreign = sorted({path.name for pattern in _FOREIGN for path in folder.glob(pattern)})
    others = f"; {some(foreign)} is not read as such" if foreign else ""
    return (
        f"{folder} holds no model.safetensors and no pytorch_model.bin{others}. Write it with "
        "save_pretrained, or give the file itself"
    )


def some(names: Any) -> str:
    """The first three names."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")


def _shards(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} names no files: it has no weight_map")
    names = weight_map.values()
    outside = [
        name
        for name in names
        if not isinstance(name, str) or not name or name != Path(name).name or "\\" in name
    ]
    if outside:
        raise CheckpointError(
            f"{index} is refused: it names {some(outside)}, expected files of its own folder"
        )
    return sorted(set(names))
