"""Where the tensors of ``weights.safetensors`` lie, for engines that map the file."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

FILE_NAME = "weights.safetensors"


@dataclass(frozen=True)
class Place:
    """A tensor's bytes in the file, safetensors' name of its dtype, and its shape."""

    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]


def read_places(path: Path) -> dict[str, Place]:
    """By name; offsets count from the start of the file, of which only the header is read.

    Source: safetensors README, "Format": 8 bytes little-endian length, JSON header, data.
    """
    with path.open("rb") as file:
        (header_length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_length))
    header.pop("__metadata__", None)
    data = 8 + header_length
    places = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        places[name] = Place(data + begin, end - begin, entry["dtype"], tuple(entry["shape"]))
    return places
