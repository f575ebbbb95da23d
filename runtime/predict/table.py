"""``OUT.csv`` and ``OUT.parquet``: a row for each protein, or for each residue."""

import csv
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtime.errors import InputError
from runtime.manifest import HeadEntry
from runtime.predict.scores import Prediction
from runtime.readers.records import Record, RecordOptions, Rejection, prepare
from runtime.staging import staging
from runtime.tokenizer import TOKENS
from runtime.writers.writing import check_place, naming_errors

ENDINGS = (".csv", ".parquet")
# Rows of Parquet that are held before they are written.
BLOCK_ROWS = 1 << 16
OF_PROTEIN, OF_RESIDUE = ("id",), ("id", "position", "residue")

Row = list[Any]


class _File(Protocol):
    def add(self, row: Row) -> None:
        """Writes a row, now or later."""

    def finish(self) -> None:
        """Writes what is held."""


def check_table(path: Path, head: HeadEntry) -> None:
    """Raises InputError or OutputError, before any work is done, if ``path`` cannot be written."""
    if path.suffix not in ENDINGS:
        raise InputError(
            f"cannot write {path}: predictions go to a file that ends in {' or '.join(ENDINGS)}"
        )
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            f"cannot write {path}: pyarrow is not installed. pip install pyarrow, or write .csv"
        )
    if len(set(columns_of(head))) < len(columns_of(head)):
        raise InputError(
            f"cannot write {path}: a label is named as a column that is there already, one of "
            f"{', '.join(OF_RESIDUE)}. Name it otherwise where the artifact is built"
        )
    check_place(path)


def columns_of(head: HeadEntry) -> list[str]:
    """Names of a table's columns: label and probability, or a column for each label."""
    first = OF_RESIDUE if head.rows == "tokens" else OF_PROTEIN
    single = head.problem_type == "single_label_classification"
    return [*first, *(("label", "probability") if single else head.labels)]


class Table:
    """Takes predictions; rows are counted."""

    def __init__(self, file: _File, head: HeadEntry, options: RecordOptions):
        self.rows = 0
        self._file = file
        self._head = head
        self._options = options

    def add(self, prediction: Prediction, record: Record) -> None:
        """Writes a protein: one row, or one for each residue."""
        for first, row in zip(
            self._first(prediction, record), np.atleast_2d(prediction.scores), strict=True
        ):
            self._file.add([*first, *self._numbers(row)])
            self.rows += 1

    def _first(self, prediction: Prediction, record: Record) -> Iterator[Row]:
        if self._head.rows == "proteins":
            yield [prediction.id]
            return
        prepared = prepare(record, self._options)
        assert not isinstance(prepared, Rejection)  # it was run
        for position, token in enumerate(prepared.tokens[1:-1], start=1):
            yield [prediction.id, position, TOKENS[token]]

    def _numbers(self, row: Any) -> Row:
        if self._head.problem_type != "single_label_classification":
            return row.tolist()  # type: ignore[no-any-return]
        if np.isnan(row).any():
            return ["", float("nan")]
        best = int(row.argmax())
        return [self._head.labels[best], float(row[best])]


@contextmanager
def opened_table(
    path: Path, head: HeadEntry, options: RecordOptions, metadata: Mapping[str, str]
) -> Iterator[Table]:
    """Gives a table; ``path`` appears when the block ends, whole, and not where it fails.

    Args:
        path: ends in .csv or .parquet.
        head: whose predictions they are.
        options: by which records were taken.
        metadata: stored in Parquet.
    """
    target = path.resolve()
    with ExitStack() as stack, naming_errors(path):
        aside = stack.enter_context(staging(target))
        columns = columns_of(head)
        file: _File
        if path.suffix == ".csv":
            text = stack.enter_context(aside.open("w", newline="", encoding="utf-8"))
            file = _Csv(text, columns)
        else:
            file = _Parquet(stack, aside, columns, metadata)
        yield Table(file, head, options)
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
        self, stack: ExitStack, path: Path, columns: list[str], metadata: Mapping[str, str]
    ):
        import pyarrow
        from pyarrow import parquet

        kinds = {"id": pyarrow.string(), "position": pyarrow.int64(), "residue": pyarrow.string()}
        kinds["label"] = pyarrow.string()
        self._columns = columns
        self._held: list[Row] = []
        self._schema = pyarrow.schema(
            [(name, kinds.get(name, pyarrow.float64())) for name in columns], dict(metadata)
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
