"""``.parquet``: a row for each protein, a row group for each block."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import parquet

from runtime.writers.blocks import Block
from runtime.writers.columns import Columns


class Writer:
    """See ``writing.Writer``; ``numbered`` adds the column ``row``, the record's in the input."""

    def __init__(
        self, path: Path, metadata: dict[str, str], columns: Columns, numbered: bool = False
    ):
        self.proteins = 0
        self._path = path
        self._metadata = metadata
        self._vectors = columns.vectors
        self._numbered = numbered
        self._file: Any = None
        self._sink: Any = None

    def write(self, block: Block) -> None:  # noqa: D102
        # A row group that fails midway takes the file along: memory runs out here, or nowhere.
        # Arrow was measured to take 3.5 times the block.
        np.empty(4 * block.rows.nbytes, np.uint8)
        each = np.split(block.rows, len(self._vectors), axis=-1)
        vectors = {
            name: _lists(rows, block) for name, rows in zip(self._vectors, each, strict=True)
        }
        table = pyarrow.table(
            ({"row": block.numbers} if self._numbered else {})
            | {
                "ids": pyarrow.array(block.ids, pyarrow.string()),
                "num_tokens": block.num_tokens,
            }
            | {name: pyarrow.array(text, pyarrow.string()) for name, text in block.columns.items()}
            | vectors
        ).replace_schema_metadata(self._metadata)
        if self._file is None:
            # Opened here: the writer's own stays open, and its space taken, where the disk is full.
            self._sink = pyarrow.OSFile(str(self._path), "wb")
            self._file = parquet.ParquetWriter(self._sink, table.schema, use_dictionary=["ids"])
        self._file.write_table(table)
        self.proteins += len(block.ids)

    def finish(self) -> None:  # noqa: D102
        self._file.close()
        self._sink.close()

    def close(self) -> None:  # noqa: D102
        # Of a file that failed, whatever it says: it was said before.
        if self._file is None:
            return
        for each in (self._file, self._sink):
            with contextlib.suppress(Exception):
                each.close()


def _lists(rows: NDArray[np.floating], block: Block) -> Any:
    """Of vectors, or for each protein of its residues' vectors; numbers as they are."""
    if rows.ndim == 1:
        return pyarrow.array(rows)
    vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1])
    if block.ends is None:
        return vectors
    starts = pyarrow.array([0, *block.ends], pyarrow.int64())
    return pyarrow.LargeListArray.from_arrays(starts, vectors)
