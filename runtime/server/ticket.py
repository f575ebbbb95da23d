"""What is known of one request from its head to the end of its answer."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from starlette.requests import Request

from runtime.server.problems import Gone, TimedOut

T = TypeVar("T")
_KEY = "esm2.ticket"


@dataclass
class Ticket:
    """A request.

    Attributes:
        id: of the client, or made for it.
        client: who shares the engine with others.
        began: on the monotonic clock.
        status: of the answer; 499 where the client hung up before.
        error: ``error_type`` of an answer that is none.
        tokens, sequences: that it came to.
        model: SHA-256 of the manifest of the artifact that answers; empty before one is asked.
        at_end: is called when the answer was sent, or will not be.
    """

    id: str
    client: str
    began: float = field(default_factory=time.monotonic)
    status: int = 499
    error: str = ""
    tokens: int = 0
    sequences: int = 0
    model: str = ""
    at_end: list[Callable[[], None]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.monotonic() - self.began


def give_ticket(scope: MutableMapping[str, Any], ticket: Ticket) -> None:
    """Keeps it with the request."""
    scope[_KEY] = ticket


def ticket_of(request: Request) -> Ticket:
    """That it was given."""
    return cast(Ticket, request.scope[_KEY])


async def while_there(request: Request, work: Awaitable[T], timeout: float) -> T:
    """Waits for what a client waits for, as long as it does.

    Args:
        request: whose body was read.
        work: is cancelled when the client hangs up, or it takes too long.
        timeout: seconds since the request came.

    Raises:
        Gone: the client has hung up.
        TimedOut: it took too long.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    left = max(0.0, timeout - ticket_of(request).seconds)
    try:
        await asyncio.wait({task, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise Gone("the client has hung up")
        raise TimedOut(
            f"no answer within {timeout:g} seconds (--timeout): send fewer proteins at once"
        )
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
