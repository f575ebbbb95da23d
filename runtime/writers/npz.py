"""``.npz`` in one pass: rows go to the archive as they come, their number is filled in last.

An archive's member begins with its size and checksum, and an array's file with its shape. NumPy
pads that header so that a shape can grow, so both are rewritten in place when they are known.
"""

import contextlib
import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from runtime.writers.blocks import Block
from runtime.writers.columns import USUAL, Columns

_COPY_BYTES = 1 << 20


class Writer:
    """See ``writing.Writer``.

    Everything but ``embeddings`` is kept in small files beside it until the end, not in memory.
    """

    def __init__(self, path: Path, metadata: dict[str, str], columns: Columns = USUAL):
        self.proteins = 0
        self._metadata = metadata
        self._row: NDArray[np.floating] | None = None
        self._rows = 0
        self._width_of_ids = 1
        self._has_offsets = False
        # The embeddings' place in the archive: the first.
        self._member = zipfile.ZipInfo(f"{columns.vectors[0]}.npy")
        self._member.CRC = self._member.header_offset = 0
        with contextlib.ExitStack() as files:
            self._file: IO[bytes] = files.enter_context(path.open("w+b"))
            self._ids, self._num_tokens, self._ends = (
                files.enter_context(path.with_name(name).open("w+b"))
                for name in ("ids", "num_tokens", "ends")
            )
            self._file.write(self._member.FileHeader(zip64=True))
            self._begin = self._file.tell()
            self._open = files.pop_all()

    def write(self, block: Block) -> None:  # noqa: D102
        if self._row is None:
            self._row = block.rows[:0]
            self._has_offsets = block.ends is not None
            self._file.write(self._header())
        self._file.write(block.rows.data)
        if block.ends is not None:
            self._ends.write((block.ends + self._rows).data)
        self._num_tokens.write(block.num_tokens.data)
        self._ids.write(json.dumps(block.ids).encode() + b"\n")
        self._width_of_ids = max(self._width_of_ids, *map(len, block.ids))
        self._rows += len(block.rows)
        self.proteins += len(block.ids)

    def finish(self) -> None:  # noqa: D102
        end = self._finish_embeddings()
        archive = zipfile.ZipFile(self._file, "w")  # noqa: SIM115
        try:
            archive.filelist.append(self._member)
            archive.NameToInfo[self._member.filename] = self._member
            archive.start_dir = end
            self._add_ids(archive)
            self._add_column(archive, "num_tokens", self._num_tokens, first=())
            if self._has_offsets:
                self._add_column(archive, "offsets", self._ends, first=(0,))
            for key, value in self._metadata.items():
                with archive.open(f"{key}.npy", "w") as member:
                    npy.write_array(member, np.array(value), allow_pickle=False)
            archive.close()
        except BaseException:
            archive.fp = None  # else it would end an archive that was interrupted, and complain
            raise
        self._open.close()

    def close(self) -> None:  # noqa: D102
        with contextlib.suppress(OSError):
            self._open.close()

    def _header(self) -> bytes:
        """Of ``embeddings.npy``; its length does not depend on the number of rows."""
        assert self._row is not None
        return _npy_header(self._row.dtype, (self._rows, *self._row.shape[1:]))

    def _finish_embeddings(self) -> int:
        """Fills in what was not known before; returns where the member ends."""
        assert self._row is not None
        header = self._header()
        size: int = len(header) + self._rows * self._row.shape[1] * self._row.itemsize
        end = self._begin + size
        # A write that failed may have left more than was counted.
        self._file.truncate(end)
        self._file.seek(self._begin)
        self._file.write(header)
        self._file.seek(self._begin)
        checksum = 0
        while data := self._file.read(_COPY_BYTES):
            checksum = zlib.crc32(data, checksum)
        member = self._member
        member.CRC, member.file_size, member.compress_size = checksum, size, size
        self._file.seek(0)
        self._file.write(member.FileHeader(zip64=True))
        return end

    def _add_column(
        self, archive: zipfile.ZipFile, name: str, values: IO[bytes], first: Iterable[int]
    ) -> None:
        ahead = np.array(list(first), "<i8")
        values.truncate(8 * self.proteins)
        values.seek(0)
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            member.write(_npy_header(ahead.dtype, (len(ahead) + self.proteins,)))
            member.write(ahead.tobytes())
            shutil.copyfileobj(values, member, _COPY_BYTES)

    def _add_ids(self, archive: zipfile.ZipFile) -> None:
        """Deflated: every id takes as many characters as the longest, most of them zeros."""
        dtype = np.dtype(f"<U{self._width_of_ids}")
        at_once = max(1, _COPY_BYTES // dtype.itemsize)
        info = zipfile.ZipInfo("ids.npy")
        info.compress_type = zipfile.ZIP_DEFLATED
        left = self.proteins
        self._ids.seek(0)
        with archive.open(info, "w", force_zip64=True) as member:
            member.write(_npy_header(dtype, (self.proteins,)))
            while left:
                ids = json.loads(self._ids.readline())[:left]
                for i in range(0, len(ids), at_once):
                    member.write(np.array(ids[i : i + at_once], dtype).tobytes())
                left -= len(ids)


def _npy_header(dtype: Any, shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    description = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(header, description)
    return header.getvalue()
