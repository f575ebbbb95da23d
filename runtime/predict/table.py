"""``OUT.csv`` and ``OUT.parquet``: a row for each protein, or for each residue."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import InputError
from runtime.manifest_schema import HeadEntry
from runtime.predict.scores import Prediction
from runtime.readers.records import Record, RecordOptions, Rejection, prepare
from runtime.tokenizer import TOKENS
from runtime.writers.row_files import RowFile, check_rows, opened_rows

OF_PROTEIN, OF_RESIDUE = ("id",), ("id", "position", "residue")

KINDS = {"id": "string", "position": "int64", "residue": "string", "label": "string"}

Row = list[Any]


def check_table(path: Path, head: HeadEntry) -> None:
    """Raises InputError or OutputError, before any work is done, if ``path`` cannot be written."""
    check_rows(path, "predictions")
    if len(set(columns_of(head))) < len(columns_of(head)):
        raise InputError(
            f"cannot write {path}: a label is named as a column that is there already, one of "
            f"{', '.join(OF_RESIDUE)}. Name it otherwise where the artifact is built"
        )


def columns_of(head: HeadEntry) -> list[str]:
    """Names of a table's columns: label and probability, or a column for each label."""
    first = OF_RESIDUE if head.rows == "tokens" else OF_PROTEIN
    single = head.problem_type == "single_label_classification"
    return [*first, *(("label", "probability") if single else head.labels)]


class Table:
    """Takes predictions; rows are counted."""

    def __init__(self, file: RowFile, head: HeadEntry, options: RecordOptions):
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
    columns = {name: KINDS.get(name, "float64") for name in columns_of(head)}
    with opened_rows(path, columns, metadata) as file:
        yield Table(file, head, options)
