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
ROWS_AT_ONCE = 4096
_LARGEST_FIELD = 1 << 30
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
        number, first = next(
            ((i, line) for i, line in enumerate(lines, start=1) if line.strip()), (1, "")
        )
        delimiter = next((each for each in _DELIMITERS if each in first), ",")
        header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
        sequence, *ids = _places(header, columns)
        # Of the whole process; columns that are not read may hold anything.
        csv.field_size_limit(_LARGEST_FIELD)
        # Strict: a quote that is never closed would take all rows behind it along.
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        end = number
        for row in reader:
            line, end = end + 1, number + reader.line_num
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(f"line {line} has {len(row)} fields, the first has {len(header)}")
            if any("\n" in field and delimiter in field for field in row):
                raise InputError(
                    f"a quoted field goes on from line {line} to {end}, over what look like rows. "
                    "Close the quote, or take the line end out of the field"
                )
            yield line, row[sequence], row[ids[0]] if ids else None


def _parquet(path: str, columns: Columns) -> Iterator[tuple[int, str, str | None]]:
    """The same; Parquet has no lines."""
    if find_spec("pyarrow") is None:
        raise InputError("it is a Parquet file, and pyarrow is not installed. pip install pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _places(file.schema_arrow.names, columns)
            number = 0
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns.names):
                sequences, *ids = (_strings(batch, name) for name in columns.names)
                for i, sequence in enumerate(sequences):
                    number += 1
                    if sequence is None:
                        raise InputError(f"row {number} has no sequence, but null")
                    yield 0, sequence, (ids[0][i] or "") if ids else None
    except pyarrow.ArrowException as error:
        raise InputError(f"its Parquet is damaged ({error}). Copy it again") from None


def _strings(batch: Any, name: str) -> list[str | None]:
    import pyarrow
    from pyarrow import types

    column = batch.column(name)
    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    if types.is_nested(kind) or types.is_floating(kind):
        raise InputError(f"its column {name!r} holds {kind}, and no text")
    values: list[str | None] = column.cast(pyarrow.string()).to_pylist()
    return values


def _places(names: list[str], columns: Columns) -> list[int]:
    missing = [name for name in columns.names if name not in names]
    if missing:
        raise InputError(
            f"it has no column {missing[0]!r}, it has {', '.join(map(printable, names)) or 'none'}"
        )
    if twice := [name for name in columns.names if names.count(name) > 1]:
        raise InputError(f"it has two columns {twice[0]!r}. Rename one")
    return [names.index(name) for name in columns.names]


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    """With their ends, as ``csv`` wants them: a quoted field may go over several."""
    rest = ""
    for block in blocks:
        *whole, rest = (rest + block).split("\n")
        yield from (f"{line}\n" for line in whole)
    if rest:
        yield rest
