"""The folder itself: who may write it, where to go on, and how a part gets in for good."""

import os
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from runtime.dataset.cutting import Cutter
from runtime.dataset.records import (
    JOURNAL_FILE,
    RUN_FILE,
    Entry,
    Finished,
    Part,
    Rejected,
    Resolved,
    Run,
    decode_journal,
    decode_run,
    differences,
    differences_of_resolved,
    encode_entry,
    encode_run,
)
from runtime.errors import InputError
from runtime.readers.records import Rejection, printable
from runtime.runner import Embedding
from runtime.staging import staged, staging
from runtime.writers.blocks import blocks
from runtime.writers.columns import USUAL, Columns
from runtime.writers.writing import FORMATS, naming_errors

# What a kill costs at most.
PART_SECONDS = 300.0
PART_FILES = "part-*.parquet"
# In a folder of its own, whose name readers of Parquet pass over: its columns are others.
REJECTED_FILE = "_rejected/rejected.parquet"
LOCK_FILE = ".lock"
LOCK_SECONDS = 1.0
# What this module stages; nothing else in the folder is removed.
STAGED = ((".", RUN_FILE), (".", PART_FILES), (str(Path(REJECTED_FILE).parent), "rejected.parquet"))


class Dataset:
    """A folder that this process alone writes; from ``opened``.

    Attributes:
        path: of the folder.
        before: ``_run.json`` of a run that is gone on with, or None.
        parts: that are whole.
        is_finished: nothing is left to do.
        what: its rows are, in the plural.
        first: the first record that this process left out.
    """

    def __init__(self, path: Path, before: Run | None, parts: list[Part], is_finished: bool):
        self.path = path
        self.before = before
        self.what = before.what if before else "proteins"
        self.parts = parts
        self.is_finished = is_finished
        self.first: Rejection | None = None
        self._rejections: deque[Rejection] = deque()

    @property
    def next_row(self) -> int:
        """The row of the input to go on with."""
        return self.parts[-1].end if self.parts else 0

    @property
    def proteins(self) -> int:
        """That are in whole parts."""
        return sum(part.proteins for part in self.parts)

    @property
    def tokens(self) -> int:
        """The same in tokens."""
        return sum(part.tokens for part in self.parts)

    @property
    def num_rejected(self) -> int:
        """Records that were left out so far."""
        return sum(len(part.rejected) for part in self.parts)

    @property
    def bytes(self) -> int:
        """Of the whole parts."""
        return sum(part.bytes for part in self.parts)

    @property
    def files(self) -> int:
        """Parts that have one."""
        return sum(part.file is not None for part in self.parts)

    @property
    def rejected_path(self) -> Path:
        """Where they are listed in the end."""
        return self.path / REJECTED_FILE

    def begin(self, run: Run, resolved: Resolved) -> None:
        """Says what runs, or makes sure that it is what ran before.

        Raises:
            InputError: it is not.
        """
        self.what = run.what
        if self.before is None:
            whole = msgspec.structs.replace(run, resolved=resolved)
            _write_durably(self.path / RUN_FILE, encode_run(whole))
            return
        assert self.before.resolved is not None
        if found := differences_of_resolved(self.before.resolved, resolved):
            raise _other_run(self.path, found)

    def reject(self, rejection: Rejection) -> None:
        """Takes a record that is left out; any thread may call it."""
        self.first = self.first or rejection
        self._rejections.append(rejection)

    def write(
        self,
        embeddings: Iterable[Embedding],
        window_ends: deque[int],
        metadata: dict[str, str],
        part_bytes: int,
        columns: Columns = USUAL,
        part_seconds: float = PART_SECONDS,
    ) -> None:
        """Writes all embeddings, part by part, and finishes the dataset.

        Args:
            embeddings, window_ends: of a runner that began at ``next_row``.
            metadata: stored in each part.
            part_bytes: of vectors in a part, and a window more.
            columns: beside them, see ``runtime.writers.columns``.
            part_seconds: after which a part ends however small it is.

        Raises:
            OutputError: the disk is full, or another error of the file system.
        """
        cutter = Cutter(embeddings, window_ends, part_bytes, part_seconds)
        with naming_errors(self.path, self._how_to_go_on):
            while not cutter.is_done:
                self._write_part(cutter, metadata, columns)
            self._write_rejected()
            self._append(Finished(self.next_row))
        self.is_finished = True

    def _write_part(self, cutter: Cutter, metadata: dict[str, str], columns: Columns) -> None:
        from runtime.writers.parquet import Writer

        begun = time.monotonic()
        name = f"part-{self.files:05}.parquet"
        target = self.path / name
        with staging(target) as aside:
            with closing(Writer(aside, metadata, columns, numbered=True)) as writer:
                for block in blocks(cutter.part(), columns.added):
                    writer.write(block)
                proteins = writer.proteins
                if proteins:
                    writer.finish()
            if proteins:
                _sync(aside)
                size = aside.stat().st_size
                aside.replace(target)
                _sync(self.path)
        end = self.next_row if cutter.end is None else cutter.end
        rejected = self._rejected_before(end)
        if not proteins and not rejected:
            return
        part = Part(
            file=name if proteins else None,
            begin=self.next_row,
            end=end,
            proteins=proteins,
            tokens=cutter.tokens,
            bytes=size if proteins else 0,
            seconds=round(time.monotonic() - begun, 3),
            rejected=rejected,
        )
        self._append(part)
        self.parts.append(part)

    def _rejected_before(self, end: int) -> list[Rejected]:
        # The reading thread is ahead, and appends meanwhile.
        found = []
        while self._rejections and self._rejections[0].row < end:
            rejection = self._rejections.popleft()
            found.append(
                Rejected(
                    row=rejection.row,
                    record=printable(rejection.record),
                    file=printable(rejection.file),
                    line=rejection.line,
                    position=rejection.position,
                    reason=printable(rejection.reason),
                )
            )
        return found

    def _write_rejected(self) -> None:
        import pyarrow
        from pyarrow import parquet

        rejected = [msgspec.structs.asdict(each) for part in self.parts for each in part.rejected]
        if not rejected:
            return
        schema = pyarrow.schema(
            [
                ("row", pyarrow.int64()), ("record", pyarrow.string()), ("file", pyarrow.string()),
                ("line", pyarrow.int64()), ("position", pyarrow.int64()),
                ("reason", pyarrow.string()),
            ]
        )  # fmt: skip
        target = self.path / REJECTED_FILE
        target.parent.mkdir(exist_ok=True)
        with staging(target) as aside:
            parquet.write_table(pyarrow.Table.from_pylist(rejected, schema), aside)
            _sync(aside)
            aside.replace(target)
            _sync(target.parent)

    def _append(self, entry: Entry) -> None:
        is_new = not (self.path / JOURNAL_FILE).exists()
        with (self.path / JOURNAL_FILE).open("ab") as journal:
            journal.write(encode_entry(entry))
            journal.flush()
            os.fsync(journal.fileno())
        if is_new:
            _sync(self.path)

    def _how_to_go_on(self) -> str:
        return (
            f"{self.proteins:,} {self.what} are in whole parts: the same command with --resume "
            "goes on behind them"
        )


def is_dataset(output: str) -> bool:
    """Whether ``-o`` names a folder: by a slash at its end, by no ending, or by being one."""
    path = Path(output)
    is_other_folder = path.is_dir() and path.suffix not in FORMATS
    return output.endswith(os.sep) or not path.suffix or is_other_folder


@contextmanager
def opened(path: Path, run: Run, resume: bool) -> Iterator[Dataset]:
    """Gives the folder to this process, new or as far as it got; the block's end lets go of it.

    Args:
        path: of the folder; it is made where it does not exist.
        run: what is wanted, without ``resolved``.
        resume: go on with what is there.

    Raises:
        InputError: it holds an unfinished run and ``resume`` is false, a run of something else,
            other files, or another process writes it.
        OutputError: it cannot be written.
    """
    if find_spec("pyarrow") is None:
        raise InputError(
            f"cannot write {path}: pyarrow is not installed. pip install pyarrow, or write one file"
        )
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: folder {path.parent} does not exist")
    is_new = not path.exists()
    with naming_errors(path):
        path.mkdir(exist_ok=True)
        had_lock = (path / LOCK_FILE).exists()
        lock = _locked(path)
    try:
        yield _as_it_is(path, run, resume)
    finally:
        lock.release()
        if not (had_lock or (path / RUN_FILE).exists()):  # nothing was begun
            with suppress(OSError):
                (path / LOCK_FILE).unlink()
                if is_new:
                    path.rmdir()


def _locked(path: Path) -> FileLock:
    lock = FileLock(path / LOCK_FILE, thread_local=False)
    try:
        with suppress(NotImplementedError):  # a file system without locks
            # Who asks for the status holds it for a moment.
            lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise InputError(
            f"another process writes {path}. Wait for it, or take another folder"
        ) from None
    return lock


def _as_it_is(path: Path, run: Run, resume: bool) -> Dataset:
    if not (path / RUN_FILE).exists():
        ours = {path / LOCK_FILE, *_staged(path)}
        others = sorted(each.name for each in path.iterdir() if each not in ours)
        if others:
            raise InputError(
                f"{path} is not empty and holds no run of esm2-run: {', '.join(others[:3])}. "
                "Take another folder"
            )
        _remove_staged(path)
        return Dataset(path, None, [], is_finished=False)
    before = decode_run((path / RUN_FILE).read_bytes(), str(path / RUN_FILE))
    parts, finished, whole = read_journal(path)
    if found := differences(before, run):
        raise _other_run(path, found)
    if any(each.sha256 is None for each in before.inputs):
        raise InputError(
            f"{path} was written from standard input or a pipe: whether this is the same cannot be "
            "told. Take another folder"
        )
    _check_parts(path, parts, finished is not None)
    dataset = Dataset(path, before, parts, finished is not None)
    if dataset.is_finished:
        return dataset
    if not resume:
        of_all = f" of {before.proteins:,}" if before.proteins is not None else ""
        raise InputError(
            f"{path} holds an unfinished run with {dataset.proteins:,}{of_all} {before.what}: "
            "--resume goes on with it, another folder begins anew"
        )
    _remove_staged(path)
    _remove_what_was_not_finished(path, parts, whole)
    return dataset


def read_journal(path: Path) -> tuple[list[Part], Finished | None, int]:
    """See ``decode_journal``; a folder without one has no part yet."""
    journal = path / JOURNAL_FILE
    data = journal.read_bytes() if journal.exists() else b""
    return decode_journal(data, str(journal))


def _staged(path: Path) -> list[Path]:
    return [each for place, name in STAGED for each in staged(path / place, name)]


def _remove_staged(path: Path) -> None:
    """What a kill left; this process alone writes here."""
    for each in _staged(path):
        shutil.rmtree(each, ignore_errors=True)


def _check_parts(path: Path, parts: Iterable[Part], is_finished: bool) -> None:
    if is_finished and any(part.rejected for part in parts) and not (path / REJECTED_FILE).exists():
        raise InputError(
            f"{path / REJECTED_FILE} was removed. Put it back, or begin in another folder"
        )
    for part in parts:
        if part.file is None:
            continue
        file = path / part.file
        if not file.is_file() or file.stat().st_size != part.bytes:
            raise InputError(
                f"{file} is not as it was written. Put it back, or begin in another folder"
            )


def _remove_what_was_not_finished(path: Path, parts: Iterable[Part], whole: int) -> None:
    """A part that the journal does not know, and a line of the journal that was cut."""
    known = {part.file for part in parts}
    for file in path.glob(PART_FILES):
        if file.name not in known:
            file.unlink()
    journal = path / JOURNAL_FILE
    if journal.exists() and journal.stat().st_size != whole:
        os.truncate(journal, whole)


def _other_run(path: Path, found: list[str]) -> InputError:
    return InputError(
        f"{path} holds a run of something else: {'; '.join(found)}. Give what was given then, or "
        "take another folder"
    )


def _write_durably(path: Path, data: bytes) -> None:
    with staging(path) as aside:
        aside.write_bytes(data)
        _sync(aside)
        aside.replace(path)
        _sync(path.parent)


def _sync(path: Path) -> None:
    """What was written or renamed is on the disk afterwards, where the file system can say so."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
