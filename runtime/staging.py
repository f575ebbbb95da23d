"""Where files are written before they appear: aside, locked while their process lives.

Names are unique, so that processes in two containers or on two hosts never share one. The lock says
which of them still write: what a killed process left is removed by the next that writes there.
"""

import glob
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = ".lock"
_LOCKED, _NOT_YET = ".partial", ".new"
# A folder is new for some microseconds; a clock of another host may be off.
_NEW_SECONDS = 3600
# File systems take names of 255 bytes, 4 a character; one that is cut is found by the same cut.
_NAME_LENGTH = 50
_TOKEN_BYTES = 8


@contextmanager
def staging(destination: Path) -> Iterator[Path]:
    """Gives a path of ``destination``'s name in a folder of its own beside it, and removes both.

    The caller writes a file or makes a folder there, and moves it to ``destination`` before the
    block ends: they are on one file system.

    Raises:
        OSError: the folder that holds ``destination`` cannot be written.
    """
    _remove_leftovers(destination)
    # Named before it exists: whatever interrupts this block, it knows what to remove.
    name = f"{_prefix(destination)}{secrets.token_hex(_TOKEN_BYTES)}"
    new, folder = (destination.with_name(name + ending) for ending in (_NOT_YET, _LOCKED))
    lock = _lock_in(new)
    try:
        try:
            new.mkdir(mode=0o700)
            # A file system without locks: what is left there is left, but nothing live is removed.
            with suppress(OSError, NotImplementedError):
                lock.acquire(blocking=False)
            # Locked before it has the name that others look for.
            new.rename(folder)
            yield folder / destination.name
        finally:
            _remove(new, folder, lock)
    finally:  # again, should a signal have interrupted that
        _remove(new, folder, lock)


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Gives a folder among the system's temporary ones; a killed run's goes with the next run."""
    with staging(Path(tempfile.gettempdir()) / f"esm2-engines-{purpose}") as folder:
        folder.mkdir()
        yield folder


def staged(folder: Path, name: str) -> list[Path]:
    """What runs that write files of this name in ``folder`` have aside, or left; a pattern."""
    return [
        path
        for ending in (_LOCKED, _NOT_YET)
        for path in folder.glob(f".{name}.{'[0-9a-f]' * (2 * _TOKEN_BYTES)}{ending}")
    ]


def _remove(new: Path, folder: Path, lock: FileLock) -> None:
    for path in (folder, new):
        shutil.rmtree(path, ignore_errors=True)
    lock.release()


def _remove_leftovers(destination: Path) -> None:
    for folder in destination.parent.glob(f"{glob.escape(_prefix(destination))}*{_NOT_YET}"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _NEW_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
    for folder in destination.parent.glob(f"{glob.escape(_prefix(destination))}*{_LOCKED}"):
        lock = _lock_in(folder)
        try:
            lock.acquire(blocking=False)
        except (Timeout, OSError, NotImplementedError):  # live, another user's, or not to be told
            continue
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _prefix(destination: Path) -> str:
    return f".{destination.name[:_NAME_LENGTH]}."


def _lock_in(folder: Path) -> FileLock:
    # Not by thread: whoever ends the block releases it.
    return FileLock(folder / _LOCK, thread_local=False)
