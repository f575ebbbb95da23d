"""Answers of eager fair-esm on disk, so that each is computed once on a machine.

A file is named by a digest of everything that its answers depend on, and holds a digest of its own
contents: one that was changed is not believed but computed again.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.staging import staging

MAX_BYTES = 4 << 30

Arrays = dict[str, NDArray[np.floating]]


class Cache:
    """Arrays by key; the least recently used go when there are more than ``max_bytes``.

    Args:
        folder: made when the first answer is written.
        max_bytes: of all files together.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES):
        self._folder = folder
        self._max_bytes = max_bytes

    @staticmethod
    def key(recipe: str, proteins: Iterable[NDArray[np.int64]]) -> str:
        """Of answers to ``proteins``' tokens under ``recipe``, which names all else that counts."""
        digest = hashlib.sha256(recipe.encode())
        for tokens in proteins:
            digest.update(f"\n{len(tokens)} ".encode() + tokens.tobytes())
        return digest.hexdigest()

    def has_room(self, num_bytes: int) -> bool:
        """Whether so much can be written and will still be here."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder).free
        except OSError:
            return False
        return os.access(self._folder, os.W_OK) and num_bytes < min(free, self._max_bytes)

    def read(self, key: str) -> Arrays | None:
        """The arrays, or None where they are not here, or not as they were written."""
        path = self._path(key)
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in file.files}
        except Exception:  # a damaged archive fails in the classes of three libraries
            return None
        with contextlib.suppress(OSError):  # read-only: used as it is, and never removed
            path.touch()
        stored = arrays.pop("digest", None)
        return arrays if stored is not None and str(stored) == _digest(key, arrays) else None

    def write(self, key: str, arrays: Arrays) -> None:
        """Keeps ``arrays``. A full or read-only disk costs the next run its time, nothing else."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Under one name for all keys: the next answer removes what a killed process left.
            with staging(self._path("answers")) as aside:
                np.savez(aside, digest=np.array(_digest(key, arrays)), **arrays)  # type: ignore[arg-type]
                aside.replace(self._path(key))
            self._remove_oldest()
        except OSError:
            return

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.npz"

    def _remove_oldest(self) -> None:
        files = sorted(self._folder.glob("*.npz"), key=lambda path: -path.stat().st_mtime)
        total = 0
        for path in files:
            total += path.stat().st_size
            if total > self._max_bytes:
                path.unlink()


def _digest(key: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(key.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\n{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
