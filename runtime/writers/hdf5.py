"""``.h5``: one dataset for each column, grown block by block."""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from runtime.writers.blocks import Block
from runtime.writers.columns import USUAL, Columns
from runtime.writers.enduring_file import EnduringFile

# Of one chunk of the embeddings; rows are whole, so that one protein is read from few chunks.
_CHUNK_BYTES = 1 << 19
_CHUNK_PROTEINS = 1024
# A chunk takes its place on the disk whole: in a file of few proteins it is small.
_LEAST_ROWS = 64


class Writer:
    """See ``writing.Writer``.

    HDF5 runs in a thread of its own: in the main thread a signal's exception could be raised in the
    functions that it calls, which cannot pass it on.
    """

    def __init__(self, path: Path, metadata: dict[str, str], columns: Columns = USUAL):
        self.proteins = 0
        self._name = columns.vectors[0]
        self._rows = 0
        self._bytes = EnduringFile(path)
        self._thread = ThreadPoolExecutor(1, "esm2-hdf5")
        self._file: Any = self._run(h5py.File, self._bytes, "w")
        self._run(self._file.attrs.update, metadata)

    def write(self, block: Block) -> None:  # noqa: D102
        self._run(self._write, block)
        self.proteins += len(block.ids)
        self._rows += len(block.rows)

    def finish(self) -> None:  # noqa: D102
        self._run(self._finish)
        self._bytes.close()

    def close(self) -> None:  # noqa: D102
        # Of a file that failed, whatever it says: it was said before.
        with contextlib.suppress(Exception):
            self._run(self._file.close)
        self._thread.shutdown()
        self._bytes.close()

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        result = self._thread.submit(function, *arguments).result()
        self._bytes.check()
        return result

    def _write(self, block: Block) -> None:
        if "ids" not in self._file:
            self._create(block)
        self._append("ids", self.proteins, np.array(block.ids, object))
        self._append("num_tokens", self.proteins, block.num_tokens)
        if block.ends is not None:
            self._append("offsets", self.proteins + 1, block.ends + self._rows)
        self._append(self._name, self._rows, block.rows)

    def _finish(self) -> None:
        # Of a write that failed nothing is left.
        for name in self._file:
            length = self._rows if name == self._name else self.proteins + (name == "offsets")
            self._file[name].resize(length, axis=0)
        self._file.close()

    def _create(self, block: Block) -> None:
        width = block.rows.shape[1]
        rows = max(1, _CHUNK_BYTES // max(1, width * block.rows.itemsize))
        rows = min(rows, max(len(block.rows), _LEAST_ROWS))
        new = self._file.create_dataset
        one_each = {"shape": (0,), "maxshape": (None,), "chunks": (_CHUNK_PROTEINS,)}
        new("ids", dtype=h5py.string_dtype(), **one_each)
        new("num_tokens", dtype=block.num_tokens.dtype, **one_each)
        if block.ends is not None:
            new("offsets", dtype=block.ends.dtype, **{**one_each, "shape": (1,)})
        new(
            self._name, dtype=block.rows.dtype, shape=(0, width), maxshape=(None, width),
            chunks=(rows, width),
        )  # fmt: skip

    def _append(self, name: str, begin: int, values: NDArray[Any]) -> None:
        dataset = self._file[name]
        dataset.resize(begin + len(values), axis=0)
        dataset[begin:] = values
