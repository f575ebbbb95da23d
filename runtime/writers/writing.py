"""One way to write, whatever the format: aside, block by block, renamed when whole."""

import importlib
import importlib.util
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Protocol

from runtime.errors import InputError, OutOfMemoryError, OutputError
from runtime.runner import Embedding
from runtime.staging import staging
from runtime.writers.blocks import SPARING, Block, blocks
from runtime.writers.columns import USUAL, Columns

# Ending -> its module, which has a class ``Writer``, and the library that it needs.
Formats = dict[str, tuple[str, str | None]]
FORMATS: Formats = {
    ".npz": ("runtime.writers.npz", None),
    ".parquet": ("runtime.writers.parquet", "pyarrow"),
    ".h5": ("runtime.writers.hdf5", "h5py"),
}
# Of one number a record.
TABLES: Formats = {
    ".csv": ("runtime.writers.delimited", None),
    ".tsv": ("runtime.writers.delimited", None),
    ".parquet": FORMATS[".parquet"],
}


class Writer(Protocol):
    """A file of one format. ``Writer(path, metadata, columns)`` creates it."""

    proteins: int
    """That are in the file for good."""

    def write(self, block: Block) -> None:
        """Adds proteins; what a call that failed has written is not counted."""

    def finish(self) -> None:
        """Makes the file whole, with the proteins that are counted, and closes it."""

    def close(self) -> None:
        """Lets go of the file, whole or not; raises nothing."""


def check_output(path: Path, formats: Formats = FORMATS) -> None:
    """Raises InputError or OutputError, before any work is done, if ``path`` cannot be written."""
    if path.suffix not in formats:
        raise InputError(
            f"cannot write {path}: the ending says the format, one of {', '.join(formats)}"
        )
    _, library = formats[path.suffix]
    if library and importlib.util.find_spec(library) is None:
        raise InputError(
            f"cannot write {path}: {library} is not installed. pip install {library}, or write "
            f"{next(iter(formats))}"
        )
    check_place(path)


def check_place(path: Path) -> None:
    """Raises InputError or OutputError if no file, of whatever format, can be written there."""
    target = _target(path)
    with _naming(path):
        if not target.parent.is_dir():
            raise InputError(f"cannot write {path}: folder {target.parent} does not exist")
        if target.is_dir():
            raise InputError(f"cannot write {path}: it is a folder")
        # For real: read-only, forbidden, full or too long a name, the file system says it best.
        with staging(target) as aside:
            aside.touch()
        if _belongs_to_another(target):
            raise PermissionError("it is another user's, and only they may replace it there")


def write_embeddings(
    path: Path,
    embeddings: Iterable[Embedding],
    metadata: dict[str, str],
    columns: Columns = USUAL,
    formats: Formats = FORMATS,
) -> None:
    """Writes all embeddings; ``path`` appears only when the last of them is in it.

    Memory is bounded (``blocks.BLOCK_BYTES``), however many they are.

    Args:
        path: ends in one of ``formats``.
        embeddings: consumed once, in order.
        metadata: stored beside the data.
        columns: others than the usual ones are for .parquet.
        formats: what ``path`` may end in.

    Raises:
        InputError: there are no embeddings.
        OutputError: the disk is full, or another error of the file system; nothing is left.
        OutOfMemoryError: what was finished is in ``<name>.unfinished<ending>``. The same goes for
            the errors in ``blocks.SPARING`` that ``embeddings`` raises.
    """
    target = _target(path)
    with ExitStack() as stack:
        with _naming(path):
            aside = stack.enter_context(staging(target))
            module = importlib.import_module(formats[path.suffix][0])
            writer: Writer = stack.enter_context(closing(module.Writer(aside, metadata, columns)))
        try:
            for block in blocks(embeddings, columns.added):
                with _naming(path, writer):
                    writer.write(block)
        except MemoryError as error:
            raise OutOfMemoryError(
                f"out of memory while embedding into {path}. {_keep(writer, aside, target)}. "
                "Try a smaller --max-tokens, fewer --threads, or --pool mean"
            ) from error
        except SPARING as error:
            raise type(error)(f"{error}. {_keep(writer, aside, target)}") from error
        if writer.proteins == 0:
            raise InputError(f"cannot write {path}: there are no embeddings")
        with _naming(path, writer):
            writer.finish()
            aside.replace(target)


def _keep(writer: Writer, aside: Path, target: Path) -> str:
    """Publishes what was finished beside ``target``; says so."""
    if writer.proteins == 0:
        return "No protein was finished before"
    unfinished = target.with_name(f"{target.stem}.unfinished{target.suffix}")
    try:
        writer.finish()
        aside.replace(unfinished)
    except (OSError, MemoryError) as error:
        return f"The {writer.proteins} proteins finished before could not be kept ({error})"
    return f"The {writer.proteins} proteins finished before are in {unfinished}"


def _naming(path: Path, writer: Writer | None = None) -> AbstractContextManager[None]:
    if writer is None:
        return naming_errors(path)
    return naming_errors(path, lambda: f"The {writer.proteins} proteins written before are lost")


@contextmanager
def naming_errors(path: Path, consequence: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Says an error of the file system about what the user named, not about what is hidden.

    Args:
        path: that the user named.
        consequence: what became of the results, in a sentence without its stop; asked for where an
            error occurs.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        said = ". ".join(filter(None, (f"cannot write {path}: {reason}", consequence())))
        raise OutputError(said) from error


def _target(path: Path) -> Path:
    # Through a symbolic link, so that the file is replaced and not the link.
    return Path(os.path.realpath(path))


def _belongs_to_another(target: Path) -> bool:
    """Whether the folder's sticky bit (as on /tmp) forbids to replace ``target``."""
    if not target.exists() or not hasattr(os, "geteuid"):
        return False
    folder = target.parent.stat()
    owners = {0, target.stat().st_uid, folder.st_uid}
    return bool(folder.st_mode & stat.S_ISVTX) and os.geteuid() not in owners
