"""Where files are written before they appear: aside, locked while their process lives.

Names are unique, so that processes in two containers or on two hosts never share one. The lock says
which of them still write: what a killed process left is removed by the next that writes there.
"""

import glob
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = ".lock"
_LOCKED, _NOT_YET = ".partial", ".new"
# File systems take names of 255 bytes; a name that is cut is still found by the same cut.
_NAME_LENGTH = 60


@contextmanager
def staging(destination: Path) -> Iterator[Path]:
    """Gives a path of ``destination``'s name in a folder of its own beside it, and removes both.

    The caller writes a file or makes a folder there, and moves it to ``destination`` before the
    block ends: they are on one file system.

    Raises:
        OSError: the folder that holds ``destination`` cannot be written.
    """
    _remove_leftovers(destination)
    prefix = _prefix(destination)
    folder = Path(tempfile.mkdtemp(dir=destination.parent, prefix=prefix, suffix=_NOT_YET))
    lock = _lock_in(folder)
    try:
        # A file system without locks: what is left there is left, but nothing live is removed.
        with suppress(OSError, NotImplementedError):
            lock.acquire(blocking=False)
        # Locked before it has the name that others look for.
        folder = folder.rename(folder.with_suffix(_LOCKED))
        yield folder / destination.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _remove_leftovers(destination: Path) -> None:
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
