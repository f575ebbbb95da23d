"""Artifacts appear whole or not at all: written aside, verified there, renamed into place."""

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.errors import ExportError
from runtime.staging import staging

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Gives a folder beside ``destination`` to write into, and publishes it if the block succeeds.

    A build that fails removes its folder; one that is killed leaves it, and the next build of the
    same artifact removes it. Either way what ``destination`` held before is untouched. Of two
    builds at a time the last to end stays. Files become read-only: an engine has them mapped while
    it lives, so they are replaced by renaming, never written in place.

    Raises:
        ExportError: ``destination`` is something other than an artifact.
    """
    # Through a symbolic link, so that the folder is exchanged and not the link.
    destination = destination.resolve()
    if _is_foreign(destination):
        raise ExportError(
            f"cannot write artifact {destination}: it exists and is not an artifact. "
            "Choose another --out"
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    with staging(destination) as folder:
        folder.mkdir()
        yield folder
        _make_files_read_only(folder)
        _publish(folder, destination)


def link_or_copy(source: Path, target: Path) -> None:
    """One file under two names; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def writable_copy(source: Path, target: Path) -> Path:
    """A copy of an artifact that its owner can change; ``shutil.copytree`` would keep the modes."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_dir():
            writable_copy(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)
    return target


def _is_foreign(path: Path) -> bool:
    """Whether something lies there that is no artifact: one look, as others publish meanwhile."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(folder) as entries:
                names = {entry.name for entry in entries}
            # An old artifact is renamed away before it is emptied.
            is_there = os.path.samestat(os.fstat(folder), path.stat())
        finally:
            os.close(folder)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return path.exists()  # or what it lies in is a file: making the folder will say so
    return is_there and bool(names) and "manifest.json" not in names


def _make_files_read_only(folder: Path) -> None:
    for path in folder.rglob("*"):
        mode = path.stat().st_mode
        if path.is_file() and mode & 0o222:
            with contextlib.suppress(PermissionError):  # a link to another user's file
                path.chmod(mode & 0o555)


def _publish(folder: Path, destination: Path) -> None:
    while not _renamed(folder, destination) and not _exchange(folder, destination):
        # No atomic exchange on this system: for a moment there is no artifact, never half of one.
        old = folder.with_name(f"{folder.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # another build does the same
            destination.rename(old)


def _renamed(folder: Path, destination: Path) -> bool:
    """False where there is an artifact already."""
    try:
        folder.rename(destination)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two folders in one step with Linux's renameat2(2); False where there is none."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    failed: int = renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE)
    return not failed
