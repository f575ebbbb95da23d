"""The files of an artifact: their names, sizes and digests."""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import msgspec

from runtime.threads import usable_cores

# Larger files have a digest for each block, so that several threads check one file.
BLOCK_BYTES = 64 << 20
_READ_BYTES = 1 << 20
MAX_THREADS = 16


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size and digests of one file.

    Attributes:
        bytes: its size.
        sha256: of all of it.
        blocks: SHA-256 of each ``BLOCK_BYTES``, the last may be shorter; empty for one block.
    """

    bytes: int
    sha256: str
    blocks: list[str] = []


def file_entry(path: Path) -> FileEntry:
    """Size and digests of a file as it is now."""
    size = path.stat().st_size
    whole = (0, size)
    spans = list(_blocks(size)) if size > BLOCK_BYTES else []
    with _pool() as pool:
        digest, *blocks = pool.map(lambda span: sha256(path, *span), [whole, *spans])
    return FileEntry(size, digest, blocks)


def path_problem(folder: Path, name: str) -> str | None:
    """Why ``name`` is not that of a file in ``folder``, in words after the name; or None.

    Nothing is opened. A link that stays in the folder is one of its files.
    """
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or "\\" in name or "\0" in name or ":" in name:
        return "is not a relative path"
    if ".." in pure.parts or pure.as_posix() != name or name == ".":
        return "is not a plain path within the artifact"
    try:
        target, root = (folder / name).resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        return f"cannot be followed ({error})"
    return None if target.is_relative_to(root) else f"is a link out of the artifact, to {target}"


def problem_with_files(folder: Path, files: Mapping[str, FileEntry]) -> list[str]:
    """What is not as it was built, a sentence for each file; several threads read."""
    problems: dict[str, str] = {}
    to_compare = []
    for name, entry in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            problems[name] = "is missing" if missing else f"cannot be read ({error.strerror})"
            continue
        if not path.is_file():
            problems[name] = "is not a file"
        elif size != entry.bytes:
            problems[name] = f"has {size} bytes, expected {entry.bytes}"
        elif entry.blocks:
            spans = list(_blocks(size))
            if len(spans) != len(entry.blocks):
                problems[name] = f"has {len(entry.blocks)} digests, expected {len(spans)}"
                continue
            pairs = zip(spans, entry.blocks, strict=True)
            to_compare += [(name, path, span, digest) for span, digest in pairs]
        else:
            to_compare.append((name, path, (0, size), entry.sha256))
    with _pool() as pool:
        found = pool.map(lambda each: _problem_with_block(*each[1:]), to_compare)
        for (name, *_), problem in zip(to_compare, found, strict=True):
            if problem:
                problems[name] = problem
    return [f"{name} {problems[name]}" for name in files if name in problems]


def _problem_with_block(path: Path, span: tuple[int, int], expected: str) -> str | None:
    try:
        found = sha256(path, *span)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == expected else "was changed after it was built (SHA-256 differs)"


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    """Where each block begins and ends."""
    for begin in range(0, size, BLOCK_BYTES):
        yield begin, min(begin + BLOCK_BYTES, size)


def sha256(path: Path, begin: int, end: int) -> str:
    """Hexadecimal digest of some bytes of a file."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_READ_BYTES, max(end - begin, 1))))
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        while begin < end and (count := file.readinto(buffer[: end - begin])):
            digest.update(buffer[:count])
            begin += count
    return digest.hexdigest()


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(usable_cores(), MAX_THREADS), "esm2-sha256")
