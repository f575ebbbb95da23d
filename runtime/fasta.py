"""Reads proteins from FASTA files: plain, .gz, .zst, or standard input."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import dnaio
import xopen

from runtime.errors import InputError
from runtime.runner import Record

STDIN = "-"


def check_readable(paths: Iterable[str]) -> None:
    """Raises InputError, before any work is done, for files that are missing or empty."""
    for path in paths:
        if path == STDIN:
            continue
        # A pipe such as <(zcat x.gz) is neither a file nor a folder.
        if not Path(path).exists() or Path(path).is_dir():
            what = "it is a folder" if Path(path).is_dir() else "no such file"
            raise InputError(f"cannot read {path}: {what}")
        if Path(path).is_file() and Path(path).stat().st_size == 0:
            raise InputError(f"{path} is empty: it holds no FASTA record")


def read_fasta(paths: Iterable[str]) -> Iterator[Record]:
    """Yields the records of all files in order; the id is the header's first word.

    Args:
        paths: files, or ``-`` for standard input. Compression is told by the content.

    Raises:
        InputError: a file without records, damaged, or not FASTA; names it and how far it got.
    """
    for path in paths:
        name = "standard input" if path == STDIN else path
        count = 0
        try:
            # dnaio takes no compressed stream by the name "-", so files are opened here.
            source = xopen.xopen(sys.stdin.buffer if path == STDIN else path, "rb", threads=0)
            with source, dnaio.open(source, fileformat="fasta") as reader:
                for count, record in enumerate(reader, start=1):
                    yield Record(record.id or f"record_{count}", record.sequence)
        except (dnaio.FileFormatError, UnicodeDecodeError) as error:
            raise InputError(f"{name} is not FASTA after {count} records: {error}") from None
        except Exception as error:  # each decompressor has an error class of its own
            raise InputError(f"cannot read {name} after {count} records: {error}") from None
        if count == 0:
            raise InputError(f"{name} is empty: it holds no FASTA record")
