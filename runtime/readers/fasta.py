"""Reads proteins from FASTA files: plain or compressed, of any encoding that can be told.

A parser of its own, in blocks and not in lines: see docs/decisions.md.
"""

import io
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from runtime.errors import InputError
from runtime.readers.decoding import decoded
from runtime.readers.decompression import decompressed
from runtime.readers.file_formats import PIR_HEADER, text_format
from runtime.readers.records import Record, printable

STDIN = "-"
FilePath = str | os.PathLike[str]

# Larger ones leave the processor's cache: 1 MiB is read at two thirds of the speed.
BLOCK_BYTES = 1 << 16
_MARK = "\n>"
# Blank lines, and comments as in Pearson's FASTA and in many tools' output.
_LEAD = re.compile(r"(?:[ \t]*\n|[#;][^\n]*\n)*")
_COMMENT_LINE = re.compile(r"^[#;].*\n?", re.MULTILINE)


@dataclass(frozen=True)
class Pieces:
    """Records that were read together.

    Attributes:
        file: where, as it is named in messages.
        number: of the first record in ``file``, from 1.
        line: of the first record's header in ``file``, from 1.
        texts: each from behind the ``>`` of its header to its last line.
    """

    file: str
    number: int
    line: int
    texts: list[str]

    def records(self) -> Iterator[Record]:
        """One for each piece; the id is the header's first word."""
        line = self.line
        for number, text in enumerate(self.texts, start=self.number):
            header, _, body = text.partition("\n")
            if "#" in body or ";" in body:
                body = _COMMENT_LINE.sub("", body)
            words = header.split(None, 1)
            name = words[0] if words else f"record_{number}"
            yield Record(name, "".join(body.split()), self.file, line, header)
            line += text.count("\n") + 1


def check_readable(paths: Iterable[str]) -> None:
    """Raises InputError, before any work is done, for what cannot be read."""
    paths = list(paths)
    if paths.count(STDIN) > 1:
        raise InputError("standard input (-) is given twice, and can be read once. Give it once")
    for path in paths:
        if path == STDIN:
            _check_standard_input()
            continue
        try:
            status = Path(path).stat()
        except (OSError, ValueError) as error:
            what = "no such file" if isinstance(error, FileNotFoundError) else error
            raise InputError(f"cannot read {printable(path)}: {what}") from None
        if stat.S_ISDIR(status.st_mode):
            raise InputError(
                f"cannot read {path}: it is a folder. Give the FASTA files in it, {path}/*.fasta"
            )
        if not os.access(path, os.R_OK):
            raise InputError(f"cannot read {path}: permission denied")


def is_regular(path: str) -> bool:
    """Whether ``path`` can be read twice, as a pipe cannot."""
    return path != STDIN and Path(path).is_file()


def read_fasta(paths: FilePath | Iterable[FilePath]) -> Iterator[Record]:
    """Yields the records of all files in order; the id is the header's first word.

    Args:
        paths: a file or several, ``-`` for standard input. Compression and encoding are told by the
            content.

    Raises:
        InputError: a file without records, damaged, or not FASTA; names it and how far it got.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else paths
    for pieces in read_pieces(os.fspath(path) for path in given):
        yield from pieces.records()


def read_pieces(paths: Iterable[str]) -> Iterator[Pieces]:
    """``read_fasta`` for those who look at many records at once; raises the same."""
    for path in paths:
        name = "standard input" if path == STDIN else printable(path)
        count = 0
        try:
            with open_input(path) as file:
                blocks = iter(partial(file.read, BLOCK_BYTES), b"")
                for line, texts in _split(decoded(decompressed(blocks))):
                    yield Pieces(name, count + 1, line, texts)
                    count += len(texts)
        except (InputError, OSError) as error:
            raise InputError(f"cannot read {name} after {count} records: {error}") from None
        if count == 0:
            raise InputError(f"{name} is empty: it holds no FASTA record")


def _check_standard_input() -> None:
    what = None
    if sys.stdin is None:
        what = "it is closed"
    elif sys.stdin.isatty():
        what = "it is a terminal"
    if what:
        raise InputError(f"cannot read standard input (-): {what}. Give a file, or pipe one in")


def open_input(path: str) -> io.FileIO:
    """A file, or standard input; raises InputError where that is a terminal."""
    if path != STDIN:
        return io.FileIO(path)
    _check_standard_input()
    # A descriptor of its own, without a buffer and its lock: a thread that waits in sys.stdin's
    # would end the process with a fatal error when the interpreter shuts down.
    return io.FileIO(os.dup(sys.stdin.fileno()))


def _split(blocks: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """The line of the first header and the texts of whole records, as they come."""
    lead, first = _lead(blocks)
    if not first:
        return
    line = lead.count("\n") + 1
    # The part of a record that was read, without its ">".
    held = [""]
    for block in filter(None, chain([first[1:]], blocks)):
        if _MARK not in held[-1][-1:] + block:
            held.append(block)
            continue
        whole = "".join([*held, block])
        *texts, rest = whole.split(_MARK)
        held = [rest]
        yield line, texts
        line += whole.count("\n") - rest.count("\n")
    yield line, ["".join(held)]


def _lead(blocks: Iterator[str]) -> tuple[str, str]:
    """What comes before the first header, and what was read from its ``>`` on.

    Raises:
        InputError: something else comes first.
    """
    start = ""
    for block in blocks:
        start += block
        lead = _LEAD.match(start).group()  # type: ignore[union-attr]
        rest = start[len(lead) :]
        if not rest.strip() or (rest[0] in "#;" and "\n" not in rest):
            continue  # the next block says
        if rest[0] != ">" or PIR_HEADER.match(rest):
            raise InputError(f"not FASTA: {text_format(lead, rest)}")
        return lead, rest
    return start, ""
