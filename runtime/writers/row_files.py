"""``.csv`` and ``.parquet`` of rows that come one by one, as of predictions and pairs."""

import csv
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from runtime.errors import InputError
from runtime.staging import staging
from runtime.writers.writing import check_place, naming_errors

ENDINGS = (".csv", ".parquet")
# Rows of Parquet that are held before they are written.
BLOCK_ROWS = 1 << 16

Row = list[Any]


class RowFile(Protocol):
    """A table that grows."""

    def add(self, row: Row) -> None:
        """Writes a row, now or later."""

    def finish(self) -> None:
        """Writes what is held."""


def check_rows(path: Path, what: str) -> None:
    """Raises InputError or OutputError, before any work is done, if ``path`` cannot be written."""
    if path.suffix not in ENDINGS:
        raise InputError(
            f"cannot write {path}: {what} go to a file that ends in {' or '.join(ENDINGS)}"
        )
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            f"cannot write {path}: pyarrow is not installed. pip install pyarrow, or write .csv"
        )
    check_place(path)


@contextmanager
def opened_rows(
    path: Path, columns: Mapping[str, str], metadata: Mapping[str, str]
) -> Iterator[RowFile]:
    """Gives a table; ``path`` appears when the block ends, whole, and not where it fails.

    Args:
        path: ends in .csv or .parquet.
        columns: by name, Arrow's name of their type.
        metadata: stored in Parquet.
    """
    target = path.resolve()
    with ExitStack() as stack, naming_errors(path):
        aside = stack.enter_context(staging(target))
        file: RowFile
        if path.suffix == ".csv":
            text = stack.enter_context(aside.open("w", newline="", encoding="utf-8"))
            file = _Csv(text, list(columns))
        else:
            file = _Parquet(stack, aside, columns, metadata)
        yield file
        file.finish()
        aside.replace(target)


class _Csv:
    def __init__(self, text: Any, columns: list[str]):
        self._text = text
        self._rows = csv.writer(text, lineterminator="\n")
        self._rows.writerow(columns)

    def add(self, row: Row) -> None:
        # Engines compute in float32, which has no more digits.
        self._rows.writerow([f"{x:.7g}" if isinstance(x, float) else x for x in row])

    def finish(self) -> None:
        self._text.flush()


class _Parquet:
    def __init__(
        self, stack: ExitStack, path: Path, columns: Mapping[str, str], metadata: Mapping[str, str]
    ):
        import pyarrow
        from pyarrow import parquet

        self._columns = list(columns)
        self._held: list[Row] = []
        self._schema = pyarrow.schema(
            [(name, pyarrow.type_for_alias(kind)) for name, kind in columns.items()],
            dict(metadata),
        )
        sink = stack.enter_context(pyarrow.OSFile(str(path), "wb"))
        self._file = stack.enter_context(parquet.ParquetWriter(sink, self._schema))

    def add(self, row: Row) -> None:
        self._held.append(row)
        if len(self._held) >= BLOCK_ROWS:
            self._write()

    def finish(self) -> None:
        self._write()
        self._file.close()

    def _write(self) -> None:
        import pyarrow

        if not self._held:
            return
        values = dict(zip(self._columns, zip(*self._held, strict=True), strict=True))
        self._file.write_table(pyarrow.table(values, self._schema))
        self._held.clear()
