"""What is done to an artifact: mutations by name, each the same again for the same seed.

A mutation is given one file of a copy. ``seal`` and ``reseal`` write the digests anew, as who
changes an artifact on purpose does.
"""

import functools
import hashlib
import json
import os
import random
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.files import file_entry

MANIFEST = "manifest.json"
NOTHING = "nothing"
Fields = dict[str, Any]
Random = random.Random

DELETED = "(removed)"
# In place of any field of a manifest, a header or a graph.
VALUES = (
    None, -1, 0, 1, 10**18, 10**30, 1.5, "", "x", "../x", "\ud800", [], {}, [None], True, DELETED,
)  # fmt: skip
HUGE = (2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
SPARSE_BYTES, SEALED_SPARSE_BYTES = 12 << 30, 80 << 20
BOMB_BYTES = 3 << 29


@dataclass(frozen=True)
class Recipe:
    """One mutation of one file."""

    mutation: str
    file: str
    seed: int

    def __str__(self) -> str:
        return f"{self.mutation}\t{self.file}\t{self.seed}"


def seal(fields: Fields, folder: Path) -> None:
    """As ``runtime.manifest.write``, of what has no type."""
    pattern = re.compile(rb'("manifest_sha256": ")([0-9a-f]{64})(")')
    text = json.dumps(fields, indent=2).encode()
    text = pattern.sub(rb"\g<1>" + b"0" * 64 + rb"\g<3>", text)
    digest = hashlib.sha256(text).hexdigest().encode()
    rewrite(folder / MANIFEST, pattern.sub(rb"\g<1>" + digest + rb"\g<3>", text))


def reseal(folder: Path, name: str) -> None:
    """The manifest's digests of a file as it now is; of what is none, those that were."""
    path = folder / name
    if not (folder / MANIFEST).is_file():
        return
    try:
        fields = json.loads((folder / MANIFEST).read_bytes())
        if name != MANIFEST:
            if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
                return
            entry = file_entry(path)
            fields["files"][name] = {
                "bytes": entry.bytes, "sha256": entry.sha256, "blocks": entry.blocks,
            }  # fmt: skip
    except (OSError, ValueError):
        return
    if isinstance(fields, dict):
        seal(fields, folder)


def rewrite(path: Path, data: bytes) -> None:
    """Whatever its mode, and whatever else is linked to it."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every field, however deep."""
    keys: Any = value if isinstance(value, dict) else ()
    if isinstance(value, list):
        keys = range(len(value))
    return [p for key in keys for p in ((*above, key), *paths(value[key], (*above, key)))]


def changed(fields: Fields, path: tuple[Any, ...], value: Any) -> Fields:
    """A copy with another value in one place."""
    copy: Fields = json.loads(json.dumps(fields))
    place: Any = copy
    for key in path[:-1]:
        place = place[key]
    if value is DELETED:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return copy


def _another(fields: Fields, rng: Random) -> Fields:
    """One field is of another kind, or what another field is."""
    places = paths(fields)
    value = rng.choice(VALUES)
    if rng.random() < 0.4:
        value = fields
        for key in rng.choice(places):
            value = value[key]
    return changed(fields, rng.choice(places), value)


# Bytes -> bytes, for a file and for a member of an archive.


def _flip(data: bytes, rng: Random, count: int = 1) -> bytes:
    changing = bytearray(data or b"\0")
    for _ in range(count):
        changing[rng.randrange(len(changing))] ^= 1 << rng.randrange(8)
    return bytes(changing)


def _span(data: bytes, rng: Random) -> tuple[int, int]:
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + rng.choice([1, 8, 64, 4096]))


def _noise(data: bytes, rng: Random) -> bytes:
    begin, end = _span(data, rng)
    return data[:begin] + rng.randbytes(end - begin) + data[end:]


def _zeros(data: bytes, rng: Random) -> bytes:
    begin, end = _span(data, rng)
    return data[:begin] + bytes(end - begin) + data[end:]


def _without(data: bytes, rng: Random) -> bytes:
    begin, end = _span(data, rng)
    return data[:begin] + data[end:]


def _cut(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _longer(data: bytes, rng: Random) -> bytes:
    return data + rng.randbytes(rng.choice([1, 8, 5000]))


def _huge_number(data: bytes, rng: Random) -> bytes:
    """Where a length or an offset may be: at either end, and anywhere."""
    number = struct.pack("<Q", rng.choice(HUGE))[: rng.choice([4, 8])]
    last = max(0, len(data) - len(number))
    begin = rng.choice([0, rng.randrange(last + 1), max(0, last - rng.randrange(64))])
    return data[:begin] + number + data[begin + len(number) :]


BYTES: dict[str, Callable[[bytes, Random], bytes]] = {
    "a bit": _flip,
    "bits": lambda data, rng: _flip(data, rng, rng.randrange(2, 65)),
    "noise": _noise,
    "zeros": _zeros,
    "a hole": _without,
    "cut": _cut,
    "longer": _longer,
    "empty": lambda data, rng: b"",
    "twice": lambda data, rng: data + data,
    "a huge number": _huge_number,
}


# What stands in a file's place.


def _removed(path: Path, rng: Random) -> None:
    path.unlink()


def _folder(path: Path, rng: Random) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path, rng: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _device(path: Path, rng: Random) -> None:
    path.unlink()
    path.symlink_to(rng.choice(["/dev/zero", "/dev/null", "/dev/stdin", "/proc/self/mem"]))


def _looped(path: Path, rng: Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _linked_out(path: Path, rng: Random) -> None:
    root = next(above for above in path.parents if (above / MANIFEST).exists())
    outside = root.parent / f"{root.name}-{path.name}"
    path.rename(outside)
    path.symlink_to(outside)


def _exchanged(path: Path, rng: Random) -> None:
    others = [other for other in sorted(path.parent.iterdir()) if other.is_file() and other != path]
    rewrite(path, rng.choice(others).read_bytes())


def _unreadable(path: Path, rng: Random) -> None:
    path.chmod(0)


def _sparse(path: Path, rng: Random, size: int = SPARSE_BYTES) -> None:
    os.truncate(path, size)


PLACES: dict[str, Callable[[Path, Random], None]] = {
    "removed": _removed,
    "a folder": _folder,
    "a pipe": _pipe,
    "a device": _device,
    "a link to itself": _looped,
    "a link out": _linked_out,
    "another file": _exchanged,
    "unreadable": _unreadable,
    "sparse": _sparse,
}


# What only some kinds of file have.


def _field(path: Path, rng: Random) -> None:
    fields = json.loads(path.read_bytes())
    seal(_another(fields, rng), path.parent)


def _fields(path: Path, rng: Random) -> None:
    fields = json.loads(path.read_bytes())
    for _ in range(rng.randrange(2, 5)):
        fields = _another(fields, rng)
    seal(fields, path.parent)


def _header(path: Path, rng: Random) -> None:
    """Of safetensors: another field, another tensor's place, another length."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    how = rng.choice(["field", "dtype", "shape", "offsets", "exchange", "rename", "length"])
    one, other = rng.sample(sorted(header.keys() - {"__metadata__"}), 2)
    if how == "field":
        header = _another(header, rng)
    elif how == "dtype":
        header[one]["dtype"] = rng.choice(["F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "x"])
    elif how == "shape":
        header[one]["shape"] = rng.choice([[], [1], [2**32, 2**32], [0], header[other]["shape"]])
    elif how == "offsets":
        begin, end = header[one]["data_offsets"]
        header[one]["data_offsets"] = rng.choice(
            [[end, begin], [begin, rng.choice(HUGE)], [-4, end], [0, end], [begin, begin]]
        )
    elif how == "exchange":
        header[one], header[other] = header[other], header[one]
    elif how == "rename":
        header[f"{one}x"] = header.pop(one)
    text = json.dumps(header).encode()
    length = rng.choice(HUGE) if how == "length" else len(text)
    rewrite(path, struct.pack("<Q", length) + text + rest)


Array = NDArray[Any]
ARRAYS: dict[str, Callable[[Array], Array | None]] = {
    "gone": lambda a: None,
    "empty": lambda a: a[:0],
    "one": lambda a: a[:1],
    "half": lambda a: a[: len(a) // 2],
    "twice": lambda a: np.concatenate([a, a]),
    "flat": lambda a: a.reshape(-1),
    "deep": lambda a: a[None, None],
    "scalar": lambda a: a.reshape(-1)[0],
    "texts": lambda a: a.astype(str),
    "complex": lambda a: np.zeros(a.shape, complex),
    "negative": lambda a: np.full(a.shape, -5, np.int64),
    "large": lambda a: np.full(a.shape, 2**62, np.int64),
    "not numbers": lambda a: np.full(a.shape, np.nan),
    "records": lambda a: np.zeros(a.shape, [("a", "i4")]),
    "dates": lambda a: np.zeros(a.shape, "M8[s]"),
    "pickles": lambda a: np.full(a.shape, {"a": 1}, object),
}


def _array(path: Path, rng: Random) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    name = rng.choice(sorted(arrays))
    arrays[name] = ARRAYS[rng.choice(list(ARRAYS))](arrays[name])  # type: ignore[assignment]
    path.unlink()
    with path.open("wb") as new:
        np.savez(new, **{key: a for key, a in arrays.items() if a is not None})


def _repacked(
    path: Path, change: Callable[[zipfile.ZipFile, str, bytes], None], rng: Random
) -> None:
    """An archive with right checksums, one member of which ``change`` writes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    chosen = rng.choice(sorted(name for name in members if not name.endswith("/")))
    path.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            if name == chosen:
                change(archive, name, data)
            else:
                archive.writestr(name, data)


def _member(path: Path, rng: Random) -> None:
    how = BYTES[rng.choice(list(BYTES))]
    _repacked(path, lambda a, name, data: a.writestr(name, how(data, rng)), rng)


def _without_member(path: Path, rng: Random) -> None:
    _repacked(path, lambda archive, name, data: None, rng)


def _member_elsewhere(path: Path, rng: Random) -> None:
    names = ["../out", "/out", "a/../../out", "x" * 5000, "con", "a\\b"]
    _repacked(path, lambda a, name, data: a.writestr(rng.choice(names), data), rng)


@functools.cache
def _bomb() -> tuple[bytes, int]:
    """Gigabytes of zeros, deflated, and their checksum."""
    packer, checksum, block = zlib.compressobj(9, wbits=-15), 0, bytes(1 << 20)
    packed = []
    for _ in range(BOMB_BYTES >> 20):
        packed.append(packer.compress(block))
        checksum = zlib.crc32(block, checksum)
    return b"".join([*packed, packer.flush()]), checksum


def _bombed(path: Path, rng: Random) -> None:
    """A member of a few megabytes that becomes gigabytes."""

    def change(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
        packed, checksum = _bomb()
        info = zipfile.ZipInfo(name)
        archive.writestr(info, b"")
        assert archive.fp is not None
        archive.fp.write(packed)  # zipfile would deflate the gigabytes anew
        info.compress_type = zipfile.ZIP_DEFLATED
        info.file_size, info.compress_size, info.CRC = BOMB_BYTES, len(packed), checksum
        archive.start_dir = archive.fp.tell()

    _repacked(path, change, rng)


def _graph(path: Path, rng: Random) -> None:
    """Of ONNX: what refers to other files, sizes, names and operators."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    tensor = rng.choice([t for t in model.graph.initializer if t.external_data])
    node = rng.choice(model.graph.node)
    how = rng.choice(["location", "offset", "length", "dims", "type", "op", "input", "gone", "out"])
    if how in ("location", "offset", "length"):
        values = [str(rng.choice([*HUGE, -1, 0, 3])), "x", ""]
        if how == "location":
            values = ["/etc/passwd", "../outside", "manifest.json", "", "nowhere", "model.onnx"]
        for entry in tensor.external_data:
            if entry.key == how:
                entry.value = rng.choice(values)
    elif how == "dims":
        tensor.dims[:] = rng.choice([[], [0], [-1], [2**62, 2**62], [1] * 40, [7, 7]])
    elif how == "type":
        tensor.data_type = rng.choice([0, 2, 7, 8, 10, 11, 16, 99])
    elif how == "op":
        node.op_type = rng.choice(["Gather", "MatMul", "Loop", "x", "", "Reshape", "Sin"])
    elif how == "input" and node.input:
        node.input[0] = rng.choice(["x", "", *(n.output[0] for n in model.graph.node if n.output)])
    elif how == "gone":
        model.graph.node.remove(node)
    elif how == "out":
        model.graph.output[0].name = rng.choice(["x", "", model.graph.output[-1].name])
    rewrite(path, model.SerializeToString())


SPECIAL: dict[str, tuple[str, Callable[[Path, Random], None]]] = {
    "a field": ("json", _field),
    "fields": ("json", _fields),
    "its header": ("safetensors", _header),
    "an array": ("npz", _array),
    "a member": ("zip", _member),
    "a member gone": ("zip", _without_member),
    "a member elsewhere": ("zip", _member_elsewhere),
    "a bomb": ("zip", _bombed),
    "its graph": ("onnx", _graph),
}
KINDS = {
    ".safetensors": ("safetensors",),
    ".npz": ("npz", "zip"),
    ".ts": ("zip",),
    ".pt2": ("zip",),
    ".onnx": ("onnx",),
}


def mutations_of(name: str) -> list[str]:
    """Names of those that a file can have; what is special to it three times, to be tried more."""
    kinds = ("json",) if name == MANIFEST else KINDS.get(Path(name).suffix, ())
    return [*BYTES, *PLACES, *[m for m, (kind, _) in SPECIAL.items() if kind in kinds] * 3]


def mutate(folder: Path, recipe: Recipe, sealed: bool) -> None:
    """Does to ``folder``, whose files are links to others', what a recipe says.

    Args:
        folder: a copy of an artifact.
        recipe: what to do.
        sealed: write the manifest's digests anew.
    """
    if recipe.mutation == NOTHING:
        return
    path = folder / recipe.file
    shutil.copyfile(path, own := path.with_name(f"{path.name}.own"))
    own.replace(path)
    rng = random.Random(str(recipe))
    before = (folder / MANIFEST).read_bytes()
    if recipe.mutation in BYTES:
        rewrite(path, BYTES[recipe.mutation](path.read_bytes(), rng))
    elif recipe.mutation == "sparse" and sealed:
        _sparse(path, rng, SEALED_SPARSE_BYTES)
    elif recipe.mutation in PLACES:
        PLACES[recipe.mutation](path, rng)
    else:
        SPECIAL[recipe.mutation][1](path, rng)
    if sealed:
        reseal(folder, recipe.file)
    elif recipe.mutation in ("a field", "fields"):  # with the seal that was
        seal_was = re.search(rb'"manifest_sha256": "([0-9a-f]{64})"', before)
        assert seal_was is not None
        text = re.sub(
            rb'("manifest_sha256": ")[0-9a-f]{64}', rb"\g<1>" + seal_was[1], path.read_bytes()
        )
        rewrite(path, text)
