"""``OUT.rejected.tsv``: the records that were left out, with where and why."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from runtime.readers.records import Rejection, printable
from runtime.staging import staging

COLUMNS = ("record", "line", "position", "reason")


class RejectedFile:
    """Takes rejections; ``path`` appears when the block of ``rejected_file`` ends.

    Attributes:
        path: where they are to be read.
        count: of rejections.
        first: of them, or None.
    """

    def __init__(self, path: Path, file: TextIO, several_inputs: bool):
        self.path = path
        self.count = 0
        self.first: Rejection | None = None
        self._several_inputs = several_inputs
        self._table = csv.writer(file, "excel-tab", lineterminator="\n")
        self._table.writerow([*COLUMNS, "file"] if several_inputs else COLUMNS)

    def add(self, rejection: Rejection) -> None:
        """Writes one row; no name can break it, control characters are escaped."""
        self.count += 1
        self.first = self.first or rejection
        row = [rejection.record, rejection.line, rejection.position, rejection.reason]
        if self._several_inputs:
            row.append(rejection.file)
        self._table.writerow(["" if cell is None else printable(str(cell)) for cell in row])


@contextmanager
def rejected_file(output: Path, several_inputs: bool) -> Iterator[RejectedFile]:
    """Opens ``output``'s file of rejections; it is published with the first, if the block succeeds.

    A file of an earlier run is removed where this one rejects nothing.

    Args:
        output: of the run.
        several_inputs: add a column with the file that a record came from.
    """
    path = output.with_name(f"{output.name}.rejected.tsv")
    with staging(path) as aside:
        with aside.open("w", newline="", encoding="utf-8") as file:
            rejected = RejectedFile(path, file, several_inputs)
            yield rejected
        if rejected.count:
            aside.replace(path)
        else:
            path.unlink(missing_ok=True)
