"""Where the tensors of ``weights.safetensors`` lie, for engines that map the file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import ArtifactError

FILE_NAME = "weights.safetensors"
# safetensors' own limit of a header; that of 15B has 0.1 MB.
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Place:
    """A tensor's bytes in the file, safetensors' name of its dtype, and its shape."""

    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_places(path: Path) -> dict[str, Place]:
    """By name; offsets count from the start of the file, of which only the header is read.

    Source: safetensors README, "Format": 8 bytes little-endian length, JSON header, data.

    Raises:
        ArtifactError: the file cannot be read, or is no safetensors file.
    """
    try:
        with path.open("rb") as file:
            header_length = int.from_bytes(file.read(8), "little")
            if header_length > MAX_HEADER_BYTES:
                raise ArtifactError(
                    f"{path} is refused: its header has {header_length:,} bytes, of at most "
                    f"{MAX_HEADER_BYTES:,}"
                )
            entries = msgspec.json.decode(file.read(header_length), type=dict[str, dict[str, Any]])
        entries.pop("__metadata__", None)
        size, data = path.stat().st_size, 8 + header_length
        places = {}
        for name, fields in entries.items():
            entry = msgspec.convert(fields, _Entry)
            begin, end = (data + offset for offset in entry.data_offsets)
            if not data <= begin <= end <= size:
                raise ValueError(f"{name} is not within it")
            places[name] = Place(begin, end - begin, entry.dtype, entry.shape)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is damaged, it is no safetensors file ({error}). Export again or copy it anew"
        ) from None
    return places
