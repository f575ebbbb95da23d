"""A file whose writes never fail towards HDF5, which ends the process when one does at closing."""

import io
from pathlib import Path
from typing import Any


class EnduringFile:
    """What ``h5py.File`` takes for a file; after the first error it goes on in memory.

    HDF5 must write what it has cached before it can let go of a file. So that it always can, the
    first error is remembered, what is written afterwards is held in memory (HDF5's caches, at most
    a few MiB) and read back from there, and ``check`` raises the error to who asks.
    """

    def __init__(self, path: Path):
        self._file = path.open("w+b", buffering=0)
        self._place = self._size = 0
        self._error: Exception | None = None
        self._afterwards: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raises the first error, which HDF5 was not told."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Closes the file. What is in memory is gone."""
        self._file.close()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # noqa: D102
        self._place = self._size + offset if whence == io.SEEK_END else offset
        return self._place

    def tell(self) -> int:  # noqa: D102
        return self._place

    def write(self, data: Any) -> int:  # noqa: D102
        view = memoryview(data).cast("B")
        if self._error is None:
            try:
                self._write_all(view)
            except Exception as error:
                self._error = error
        if self._error is not None:
            self._afterwards.append((self._place, bytes(view)))
        self._place += len(view)
        self._size = max(self._size, self._place)
        return len(view)

    def readinto(self, buffer: Any) -> int:  # noqa: D102
        view = memoryview(buffer).cast("B")
        begin, end = self._place, self._place + len(view)
        view[:] = bytes(len(view))
        if not self._file.closed:
            self._file.seek(begin)
            done = 0
            while done < len(view) and (more := self._file.readinto(view[done:])):
                done += more
        for place, data in self._afterwards:
            first, last = max(begin, place), min(end, place + len(data))
            if first < last:
                view[first - begin : last - begin] = data[first - place : last - place]
        self._place = end
        return len(view)

    def read(self, size: int) -> bytes:  # noqa: D102
        data = bytearray(size)
        self.readinto(data)
        return bytes(data)

    def truncate(self, size: int) -> int:  # noqa: D102
        if self._error is None:
            try:
                self._file.truncate(size)
            except Exception as error:
                self._error = error
        self._size = size
        return size

    def flush(self) -> None:
        """Nothing waits here."""

    def _write_all(self, view: memoryview) -> None:
        self._file.seek(self._place)
        done = 0
        # A disk that is nearly full takes a part.
        while done < len(view):
            done += self._file.write(view[done:])
