"""Reads proteins from tables, told by the content: CSV, TSV (compressed or not), Parquet."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from runtime.errors import InputError
from runtime.readers.decoding import decoded
from runtime.readers.decompression import decompressed
from runtime.readers.fasta import BLOCK_BYTES, STDIN, is_regular, open_input
from runtime.readers.records import Record, printable

_PARQUET_START = b"PAR1"
_ROWS_AT_ONCE = 4096
# The first that the line of names holds; a name may hold the others.
_DELIMITERS = "\t,;"


@dataclass(frozen=True)
class Columns:
    """Where a table holds what.

    Attributes:
        sequence: name of the column of sequences.
        id: name of the column of ids; None numbers the rows, from 1.
    """

    sequence: str
    id: str | None = None

    @property
    def names(self) -> list[str]:
        """Of those that are read."""
        return [self.sequence] if self.id is None else [self.sequence, self.id]


def read_tables(paths: Iterable[str], columns: Columns) -> Iterator[Record]:
    """Yields a record for each row of all tables, in order.

    Args:
        paths: files; ``-`` is standard input, for CSV and TSV.
        columns: to read.

    Raises:
        InputError: a table without rows or without these columns, or damaged; names it and how far
            it got.
    """
    for path in paths:
        name = "standard input" if path == STDIN else printable(path)
        number = 0
        try:
            rows = _parquet(path, columns) if _is_parquet(path) else _text(path, columns)
            for number, (line, sequence, id_) in enumerate(rows, start=1):
                yield Record(f"record_{number}" if id_ is None else id_, sequence, name, line)
        except (InputError, OSError, csv.Error) as error:
            raise InputError(f"cannot read {name} after {number} records: {error}") from None
        if number == 0:
            raise InputError(f"{name} is empty: it holds no row")


def _is_parquet(path: str) -> bool:
    if not is_regular(path):
        return False
    with open_input(path) as file:
        return file.read(len(_PARQUET_START)) == _PARQUET_START


def _text(path: str, columns: Columns) -> Iterator[tuple[int, str, str | None]]:
    """Line, sequence and id of each row."""
    with open_input(path) as file:
        lines = _lines(decoded(decompressed(iter(partial(file.read, BLOCK_BYTES), b""))))
        first = next((line for line in lines if line.strip()), "")
        delimiter = next((each for each in _DELIMITERS if each in first), ",")
        header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
        sequence, *ids = _places(header, columns)
        # The first line was read before.
        reader = csv.reader(lines, delimiter=delimiter)
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"line {reader.line_num + 1} has {len(row)} fields, the first has {len(header)}"
                )
            yield reader.line_num + 1, row[sequence], row[ids[0]] if ids else None


def _parquet(path: str, columns: Columns) -> Iterator[tuple[int, str, str | None]]:
    """The same; Parquet has no lines."""
    if find_spec("pyarrow") is None:
        raise InputError("it is a Parquet file, and pyarrow is not installed. pip install pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _places(file.schema_arrow.names, columns)
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns.names):
                sequences, *ids = (_strings(batch, name) for name in columns.names)
                for i, sequence in enumerate(sequences):
                    yield 0, sequence, ids[0][i] if ids else None
    except pyarrow.ArrowException as error:
        raise InputError(f"its Parquet is damaged ({error}). Copy it again") from None


def _strings(batch: Any, name: str) -> list[str]:
    return ["" if value is None else str(value) for value in batch.column(name).to_pylist()]


def _places(names: list[str], columns: Columns) -> list[int]:
    missing = [name for name in columns.names if name not in names]
    if missing:
        raise InputError(
            f"it has no column {missing[0]!r}, it has {', '.join(map(printable, names)) or 'none'}"
        )
    return [names.index(name) for name in columns.names]


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    """With their ends, as ``csv`` wants them: a quoted field may go over several."""
    rest = ""
    for block in blocks:
        *whole, rest = (rest + block).split("\n")
        yield from (f"{line}\n" for line in whole)
    if rest:
        yield rest
