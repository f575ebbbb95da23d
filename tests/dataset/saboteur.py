"""Runs ``esm2-run`` and does harm at the N-th of the moments at which harm could be done.

    python -m tests.dataset.saboteur HARM N embed ARTIFACT FASTA -o OUT/ --resume

Moments are a pack that runs, a block or a footer that is written, a sync, a rename, a line of the
journal, vectors that are kept. Harm is done before or behind one; a line of the journal can be cut.
"""

import errno
import itertools
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from runtime import cli
from runtime.dataset import folder
from runtime.dataset.folder import Dataset
from runtime.errors import EngineError
from runtime.runner import AsyncInferenceRunner
from runtime.vector_cache import VectorCache
from runtime.writers.parquet import Writer

MOMENTS: tuple[tuple[Any, str], ...] = (
    (AsyncInferenceRunner, "_embed"),
    (Writer, "write"),
    (Writer, "finish"),
    (folder, "_sync"),
    (Path, "replace"),
    (Dataset, "_append"),
    (VectorCache, "_write"),
)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def break_the_engine() -> None:
    raise EngineError("the engine broke")


def cut_the_journal() -> None:
    """As a disk that fills, or power that goes, in the middle of a line."""
    journal = Path(sys.argv[sys.argv.index("-o") + 1]) / "_journal.jsonl"
    if journal.exists():
        os.truncate(journal, max(journal.stat().st_size - 7, 0))
    kill()


HARMS: dict[str, Callable[[], None]] = {
    harm.__name__: harm
    for harm in (kill, terminate, interrupt, fill_the_disk, break_the_engine, cut_the_journal)
}


def sabotage(harm: Callable[[], None], number: int) -> None:
    """Harm at the moment ``number``, even ones before what would be done, odd ones behind it."""
    moments = itertools.count()

    def harmed(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def call(*arguments: Any, **options: Any) -> Any:
            now = next(moments)
            if now == number and number % 2 == 0:
                harm()
            result = original(*arguments, **options)
            if now == number and number % 2 == 1:
                harm()
            return result

        return call

    for owner, name in MOMENTS:
        setattr(owner, name, harmed(getattr(owner, name)))


if __name__ == "__main__":
    sabotage(HARMS[sys.argv[1]], int(sys.argv[2]))
    cli.main(sys.argv[3:])
