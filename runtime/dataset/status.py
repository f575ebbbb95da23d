"""How far a run is: for people, and for scripts that wait for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from runtime.dataset.folder import LOCK_FILE, Dataset, read_journal
from runtime.dataset.records import RUN_FILE, decode_run
from runtime.errors import InputError


@dataclass(frozen=True)
class Status:
    """What the journal says.

    Attributes:
        folder: of the dataset.
        state: ``finished``, ``running`` (a process writes it), or ``unfinished``.
        what: rows are, in the plural; ``proteins`` counts them.
        proteins, tokens, parts, bytes, rejected: that are on the disk for good.
        of_proteins, of_tokens: that the input holds, or None where that is not known.
        seconds: that the parts took.
        seconds_left: at the speed so far; None where it cannot be told.
        rejected_file: where rejected records are listed, once it is finished.
    """

    folder: str
    state: Literal["finished", "running", "unfinished"]
    artifact: str
    engine: str
    what: str
    proteins: int
    of_proteins: int | None
    tokens: int
    of_tokens: int | None
    parts: int
    bytes: int
    rejected: int
    rejected_file: str | None
    seconds: float
    seconds_left: float | None

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        share = f" ({self.tokens / self.of_tokens:.0%})" if self.of_tokens else ""
        of_all = f" of {self.of_proteins:,}" if self.of_proteins is not None else ""
        yield f"{self.folder}: {self.state}{share}"
        yield f"  artifact   {self.artifact}, engine {self.engine}"
        yield f"  {self.what:<10} {self.proteins:,}{of_all}, {self.tokens:,} tokens"
        yield f"  files      {self.parts:,}, {self.bytes / 1e6:,.1f} MB"
        if self.rejected:
            where = f", listed in {self.rejected_file}" if self.rejected_file else ""
            yield f"  rejected   {self.rejected:,}{where}"
        left = f", about {duration(self.seconds_left)} left" if self.seconds_left else ""
        yield f"  time       {duration(self.seconds)}{left}"
        if self.state == "unfinished":
            yield "  go on with the same command and --resume"


def status_of(folder: Path) -> Status:
    """Reads ``_run.json`` and the journal; the writer is not disturbed.

    Raises:
        InputError: it is no dataset, or damaged.
    """
    if not (folder / RUN_FILE).is_file():
        raise InputError(f"{folder} is no folder that 'esm2-run embed' wrote: it has no {RUN_FILE}")
    run = decode_run((folder / RUN_FILE).read_bytes(), str(folder / RUN_FILE))
    parts, finished, _ = read_journal(folder)
    dataset = Dataset(folder, run, parts, finished is not None)
    tokens = dataset.tokens
    seconds = sum(part.seconds for part in parts)
    left = None
    if tokens and run.tokens is not None and not dataset.is_finished:
        left = (run.tokens - tokens) * seconds / tokens
    state: Literal["finished", "running", "unfinished"] = "finished"
    if not dataset.is_finished:
        state = "running" if _is_written(folder) else "unfinished"
    is_listed = dataset.is_finished and dataset.num_rejected
    return Status(
        folder=str(folder),
        state=state,
        artifact=run.artifact,
        engine=run.resolved.engine if run.resolved else "unknown",
        what=run.what,
        proteins=dataset.proteins,
        of_proteins=run.proteins,
        tokens=tokens,
        of_tokens=run.tokens,
        parts=dataset.files,
        bytes=dataset.bytes,
        rejected=dataset.num_rejected,
        rejected_file=str(dataset.rejected_path) if is_listed else None,
        seconds=seconds,
        seconds_left=left,
    )


def duration(seconds: float) -> str:
    """Such as ``2 d 3 h``, ``5 min``, ``8 s``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 2:
        return f"{60 * hours + minutes} min"
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def _is_written(folder: Path) -> bool:
    lock = FileLock(folder / LOCK_FILE, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    except (OSError, NotImplementedError):  # read-only, or no locks: not to be told
        return False
    lock.release()
    return False
