"""``.csv`` and ``.tsv``: a line for each record, of one number and what names it."""

import contextlib
import csv
from pathlib import Path

from runtime.readers.records import printable
from runtime.writers.blocks import Block
from runtime.writers.columns import Columns

_DIALECTS = {".csv": "excel", ".tsv": "excel-tab"}


class Writer:
    """See ``writing.Writer``; the metadata has no place in it."""

    def __init__(self, path: Path, _: dict[str, str], columns: Columns):
        self.proteins = 0
        self._added = columns.added
        self._file = path.open("w", newline="", encoding="utf-8")
        self._table = csv.writer(self._file, _DIALECTS[path.suffix], lineterminator="\n")
        self._table.writerow(["id", *columns.added, *columns.vectors])
        self._end = self._file.tell()

    def write(self, block: Block) -> None:  # noqa: D102
        texts = (block.columns[name] for name in self._added)
        for row in zip(block.ids, *texts, block.rows.tolist(), strict=True):
            *names, number = row
            self._table.writerow([*map(printable, names), number])
        self._file.flush()
        self._end = self._file.tell()
        self.proteins += len(block.ids)

    def finish(self) -> None:  # noqa: D102
        # A write that failed may have left more than was counted.
        self._file.truncate(self._end)
        self._file.close()

    def close(self) -> None:  # noqa: D102
        with contextlib.suppress(OSError):
            self._file.close()
