"""Artifacts appear whole or not at all: written aside, verified there, renamed into place."""

import ctypes
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.errors import ExportError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Gives a folder beside ``destination`` to write into, and publishes it if the block succeeds.

    A build that fails removes its folder; one that is killed leaves it, and the next build of the
    same artifact removes it. Either way what ``destination`` held before is untouched.

    Raises:
        ExportError: ``destination`` is something other than an artifact.
    """
    # Through a symbolic link, so that the folder is exchanged and not the link.
    destination = destination.resolve()
    is_artifact = (destination / "manifest.json").is_file()
    is_empty = destination.is_dir() and not any(destination.iterdir())
    if destination.exists() and not is_artifact and not is_empty:
        raise ExportError(
            f"cannot write artifact {destination}: it exists and is not an artifact. "
            "Choose another --out"
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(destination)
    folder = destination.with_name(f".{destination.name}.building-{os.getpid()}")
    folder.mkdir()
    try:
        yield folder
        _publish(folder, destination)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """One file under two names; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _publish(folder: Path, destination: Path) -> None:
    if not destination.exists():
        folder.rename(destination)
    elif not _exchange(folder, destination):
        # No atomic exchange on this system: for a moment there is no artifact, never half of one.
        old = destination.with_name(f".{destination.name}.building-{os.getpid()}-old")
        destination.rename(old)
        folder.rename(destination)
        shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two folders in one step with Linux's renameat2(2); False where there is none."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    failed: int = renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE)
    return not failed


def _remove_leftovers(destination: Path) -> None:
    pattern = re.compile(re.escape(f".{destination.name}.building-") + r"(\d+)(-old)?")
    for sibling in destination.parent.iterdir():
        match = pattern.fullmatch(sibling.name)
        # Containers give the same pid again and again: one of this pid is not this build's either.
        if match and (int(match.group(1)) == os.getpid() or not _is_running(int(match.group(1)))):
            shutil.rmtree(sibling, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
