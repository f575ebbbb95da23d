"""How a command ends when it is told to: cleaned up, at once, with the status of a signal."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import FrameType
from typing import NoReturn

_BY_SIGNAL = 128
# Ctrl-C is Python's own; a terminal that is closed sends SIGHUP.
_SIGNALS = ("SIGTERM", "SIGHUP")

_inside: ContextVar[bool] = ContextVar("esm2_orderly_end", default=False)


class _Ended(SystemExit):
    """Goes up as Ctrl-C does, so what "finally" says is done first."""

    def __init__(self, number: int):
        super().__init__(_BY_SIGNAL + number)
        self.signal = signal.Signals(number)


@contextmanager
def orderly_end() -> Iterator[None]:
    """Ends the process at a signal, with status 128 + its number and one line on stderr.

    A reader of standard output that went away (``| head``) ends it without a line. Signals that are
    ignored, as under nohup, stay so.
    """
    if _inside.get():
        yield
        return
    token = _inside.set(True)
    handled = _handle_signals()
    try:
        yield
    except KeyboardInterrupt:
        _end(signal.SIGINT, "interrupted")
    except _Ended as ended:
        _end(ended.signal, "terminated")
    except BrokenPipeError:
        # What is still buffered cannot be written either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(_BY_SIGNAL + 13)
    finally:
        _inside.reset(token)
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def leaving_it_to_the_caller() -> Iterator[None]:
    """Inside, a command that is run as a function raises what a signal raised, and ends nothing."""
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


def _handle_signals() -> list[signal.Signals]:
    if threading.current_thread() is not threading.main_thread():
        return []
    known = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    handled = [number for number in known if signal.getsignal(number) is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, _raise)
    return handled


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise _Ended(number)


def _end(number: signal.Signals, word: str) -> NoReturn:
    with suppress(OSError, AttributeError):
        sys.stderr.write(f"{word}\n")
        sys.stderr.flush()
    # Threads that run a pack are not waited for, as sys.exit would: it may take minutes.
    atexit._run_exitfuncs()
    os._exit(_BY_SIGNAL + number)
