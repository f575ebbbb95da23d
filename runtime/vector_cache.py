"""Vectors kept over runs, in an SQLite file: a rerun of a growing database computes what is new."""

import hashlib
import json
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.device import kind_of
from runtime.engine import EngineSpec
from runtime.errors import InputError
from runtime.manifest_schema import Manifest
from runtime.several import Vectors
from runtime.windows import Values

FILE_NAME = "vectors.sqlite"
# Of this file and of what a key is made of: another one finds nothing, and overwrites nothing.
VERSION = 1
TABLE = (
    "CREATE TABLE IF NOT EXISTS vectors (id INTEGER PRIMARY KEY AUTOINCREMENT, "
    "key BLOB NOT NULL UNIQUE, crc INTEGER NOT NULL, vector BLOB NOT NULL)"
)
KEY_BYTES = 16
KEYS_A_QUERY = 500
# Kept in memory until they are written together; what a kill costs.
PENDING_BYTES = 8 << 20
# While another process writes.
WAIT_SECONDS = 60.0
_RETRY_SECONDS = 0.05

T = TypeVar("T")


class VectorCache:
    """Vectors of one model, of its layers and poolings, by the tokens of a protein.

    A run finds what was there when it began, and nothing that it or another kept since: which
    proteins are left to compute, and so which packs they get, is the same wherever it is ended and
    gone on with. One thread may look up while another one keeps.

    Args:
        folder: of the file; it is made where it does not exist.
        manifest: of the artifact.
        spec: of the engine that computes what is not found.
        vectors: which; several of a protein are kept as one.
        tf32: whether float32 products are rounded to it.
        newest: that is found, of a run that is gone on with; None takes all that are there now.
        warn: told once where the file cannot be read or written any more; the run goes on.

    Attributes:
        newest: number of the newest vector that is found.

    Raises:
        InputError: the file cannot be opened or written, or is no cache.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, spec: EngineSpec, vectors: Vectors, *, tf32: bool,
        newest: int | None, warn: Callable[[str], None],
    ):  # fmt: skip
        self.path = folder / FILE_NAME
        self._context = _context(manifest, spec, vectors, tf32)
        self._dtype = spec.output_dtype.newbyteorder("<")
        width = len(vectors.names) * spec.embed_dim
        self._shape = (-1, width) if vectors.pools == ("none",) else (width,)
        self._warn = warn
        self._pending: list[tuple[bytes, int, bytes]] = []
        self._pending_bytes = 0
        self._is_off = False
        # Closing waits for a look-up.
        self._lock = threading.Lock()
        try:
            folder.mkdir(exist_ok=True)
            self._file = self._opened()
            in_it = self._patiently(self._newest)
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"cannot use the cache {self.path}: {error}. Give --cache a folder that can be "
                "written and that no other process holds, or leave it out"
            ) from None
        self.newest = in_it if newest is None else newest

    def find(self, proteins: Sequence[NDArray[np.int64]]) -> list[Values | None]:
        """Of each protein, by its tokens, what an earlier run kept; None where there is nothing.

        Raises:
            InputError: the file is damaged.
        """
        keys = [self._key(tokens) for tokens in proteins]
        found: dict[bytes, Values] = {}
        for begin in range(0, len(keys), KEYS_A_QUERY):
            for key, check, data in self._rows(keys[begin : begin + KEYS_A_QUERY]):
                if check != _check(key, data):
                    raise self._damaged("a vector is not as it was written")
                found[key] = np.frombuffer(bytearray(data), self._dtype).reshape(self._shape)
        return [found.get(key) for key in keys]

    def keep(self, tokens: NDArray[np.int64], values: Values) -> None:
        """Keeps the vectors of a protein, ``[E]`` or ``[L, E]``, for later runs."""
        if self._is_off:
            return
        key, data = self._key(tokens), values.astype(self._dtype, copy=False).tobytes()
        self._pending.append((key, _check(key, data), data))
        self._pending_bytes += len(data)
        if self._pending_bytes >= PENDING_BYTES:
            self._write()

    def close(self) -> None:
        """Writes what is kept in memory."""
        self._write()
        with self._lock:
            self._file.close()

    def __enter__(self) -> "VectorCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> sqlite3.Connection:
        # What waits is Python, which a signal ends, and not SQLite, which it does not.
        file = sqlite3.connect(self.path, timeout=0, check_same_thread=False)
        try:
            self._patiently(lambda: _prepare(file))
        except sqlite3.Error:
            file.close()
            raise
        return file

    def _newest(self) -> int:
        found: int | None = self._file.execute("SELECT max(id) FROM vectors").fetchone()[0]
        return found or 0

    def _rows(self, keys: Sequence[bytes]) -> list[tuple[bytes, int, bytes]]:
        if self._is_off:
            return []
        places = ",".join("?" * len(keys))
        query = f"SELECT key, crc, vector FROM vectors WHERE key IN ({places}) AND id <= ?"  # noqa: S608
        try:
            return self._patiently(
                lambda: self._file.execute(query, (*keys, self.newest)).fetchall()
            )
        except sqlite3.OperationalError as error:  # held by another process, or out of reach
            self._turn_off("read", error)
            return []
        except sqlite3.Error as error:
            raise self._damaged(str(error)) from None

    def _write(self) -> None:
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        if not pending or self._is_off:
            return

        def insert() -> None:
            with self._file:
                self._file.executemany(
                    "INSERT OR IGNORE INTO vectors (key, crc, vector) VALUES (?, ?, ?)", pending
                )

        try:
            self._patiently(insert)
        except sqlite3.Error as error:
            self._turn_off("write", error)

    def _patiently(self, action: Callable[[], T]) -> T:
        """Again and again while another process holds the file."""
        until = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                with self._lock:
                    return action()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() >= until:
                    raise
            time.sleep(_RETRY_SECONDS)

    def _turn_off(self, what: str, error: sqlite3.Error) -> None:
        self._is_off = True
        self._warn(f"cannot {what} the cache {self.path} ({error}): the run goes on without it")

    def _key(self, tokens: NDArray[np.int64]) -> bytes:
        # ESM-2 has 33 tokens: a byte each.
        data = self._context + tokens.astype(np.uint8).tobytes()
        return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()

    def _damaged(self, why: str) -> InputError:
        return InputError(f"the cache {self.path} is damaged ({why}). Remove it, or leave it out")


def _prepare(file: sqlite3.Connection) -> None:
    """Makes the table in a new file; raises DatabaseError for one of a newer version."""
    version = file.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise sqlite3.DatabaseError(f"it has version {version}, this esm2-engines reads {VERSION}")
    with file:
        file.execute(TABLE)
        file.execute(f"PRAGMA user_version = {VERSION}")


def _check(key: bytes, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(key))


def _context(manifest: Manifest, spec: EngineSpec, vectors: Vectors, tf32: bool) -> bytes:
    """All that a vector depends on, but for the protein.

    Threads and packs change last bits alone, and those of another pack would be as good.
    """
    of_vector = {
        "version": VERSION,
        "manifest": manifest.manifest_sha256,
        "engine": spec.format,
        "device": kind_of(spec.device),
        "dtype": spec.dtype,
        "attention": spec.attention,
        "library": spec.library,
        "layers": vectors.layers,
        "pools": vectors.pools,
        "tf32": tf32,
    }
    return hashlib.sha256(json.dumps(of_vector, sort_keys=True).encode()).digest()
