"""Bytes to text: encodings are told by what a file begins with, line ends become LF."""

import codecs
import io
from collections.abc import Iterator
from itertools import chain

from runtime.errors import InputError
from runtime.readers.decompression import at_least
from runtime.readers.file_formats import binary_format

# Enough to tell an encoding, and a tar archive. A pipe may give no more for long.
_BOM_BYTES, _START_BYTES = 4, 512
_DEFAULT_ENCODING = "utf-8"
# What text begins with in other encodings: byte order marks, or ">" without one.
_ENCODING_OF_START = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
    (b">\0", "utf-16-le"), (b"\0>", "utf-16-be"),
)  # fmt: skip
_BYTE_ORDER_MARK = "\ufeff"


def decoded(blocks: Iterator[bytes]) -> Iterator[str]:
    """Text with LF at the ends of lines; bytes that are no UTF-8 are escaped (PEP 383).

    Raises:
        InputError: a format that is no text, or text that ends within a character.
    """
    start, blocks = at_least(_BOM_BYTES, blocks)
    if not start.startswith(b">"):
        more, blocks = at_least(_START_BYTES - len(start), blocks)
        start += more
    if reason := binary_format(start):
        raise InputError(f"not FASTA: {reason}")
    encoding = next(
        (name for bom, name in _ENCODING_OF_START if start.startswith(bom)), _DEFAULT_ENCODING
    )
    decoder = io.IncrementalNewlineDecoder(
        codecs.getincrementaldecoder(encoding)("surrogateescape"), translate=True
    )
    try:
        for block in chain([start], blocks):
            # Anywhere: files with such a mark are joined with others.
            yield decoder.decode(block).replace(_BYTE_ORDER_MARK, "")
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        what = f"its {encoding.upper()} text is damaged or truncated ({error.reason})"
        raise InputError(f"{what}. Copy or download it again") from None
