"""Decompresses gzip, bzip2, xz and Zstandard while it is read; told by the content.

By the libraries' own decompressors and not their file objects: these alone tell data that end too
early from data that something else follows, and give what came before a fault.
"""

import bz2
import lzma
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from runtime.errors import InputError


@dataclass(frozen=True)
class _Format:
    name: str
    starts: tuple[bytes, ...]
    decompressor: Callable[[], Any]
    tool: str


# Imported for those who need them: importing the runtime needs NumPy alone.
def _gzip() -> Any:
    from isal import isal_zlib

    return isal_zlib.decompressobj(_GZIP_WITH_HEADER)


def _zstandard() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd.ZstdDecompressor()


_GZIP_WITH_HEADER = 31  # zlib's wbits
_ZSTD_SKIPPABLE = tuple(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))
_FORMATS = (
    _Format("gzip", (b"\x1f\x8b",), _gzip, "gzip -dc"),
    _Format("Zstandard", (b"\x28\xb5\x2f\xfd", *_ZSTD_SKIPPABLE), _zstandard, "zstd -dc"),
    _Format("bzip2", (b"BZh",), bz2.BZ2Decompressor, "bzip2 -dc"),
    _Format("xz", (b"\xfd7zXZ\0",), lzma.LZMADecompressor, "xz -dc"),
)
_LONGEST_START = 6
_AGAIN = "Copy or download it again"


def decompressed(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The content of ``blocks``, decompressed where it is compressed.

    Several compressed streams one after the other are one, and zeros after the last are padding, as
    ``gzip -d`` has it.

    Raises:
        InputError: what is compressed is damaged, ends too early, or is followed by something else.
    """
    source = iter(blocks)
    first, source = at_least(_LONGEST_START, source)
    for known in _FORMATS:
        if first.startswith(known.starts):
            yield from _streams(known, first, source)
            return
    yield first
    yield from source


def at_least(size: int, source: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The next ``size`` bytes or more, and what follows: a pipe gives as few at once as it likes.

    Fewer where ``source`` ends or fails; it fails again where it is read on.
    """
    first = b""
    try:
        while len(first) < size and (block := next(source, None)) is not None:
            first += block
    except InputError as error:
        return first, _failing(error)
    return first, source


def _failing(error: InputError) -> Iterator[bytes]:
    yield b""
    raise error


def _streams(known: _Format, held: bytes, source: Iterator[bytes]) -> Iterator[bytes]:
    while held := _past_padding(held, source):
        if not held.startswith(known.starts):
            raise InputError(
                f"what follows the {known.name} data is not {known.name}: garbage at the end. If "
                f"the data before it are all, decompress them with '{known.tool}'"
            )
        decompressor = known.decompressor()
        while True:
            try:
                content = decompressor.decompress(held)
            except Exception as error:  # each library has an error class of its own
                raise InputError(f"the {known.name} data are damaged: {error}. {_AGAIN}") from None
            yield content
            if decompressor.eof:
                held = decompressor.unused_data
                break
            if not (held := next(source, b"")):
                raise InputError(f"the {known.name} data are truncated. {_AGAIN}")


def _past_padding(held: bytes, source: Iterator[bytes]) -> bytes:
    """What comes after zeros, enough of it to tell a format; empty at the end."""
    while len(held := held.lstrip(b"\0")) < _LONGEST_START and (more := next(source, b"")):
        held += more
    return held
