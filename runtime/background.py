"""A call in a thread that never holds up the end of the process."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def in_background(function: Callable[..., T], *arguments: object) -> "Future[T]":
    """Calls ``function`` in a daemon thread of its own.

    An executor's threads are joined when the interpreter ends: one that reads from a pipe that
    stays silent would keep the process for ever.
    """
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # whoever waits for it gets it, as from an executor
            future.set_exception(error)

    Thread(target=call, name="esm2-reading", daemon=True).start()
    return future
