"""What the endpoints share: how they are declared, how arrays are answered."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.responses import StreamingResponse

from runtime.server import answers
from runtime.server.answers import ARROW, JSON, NPZ, PLAIN, Shape
from runtime.server.reading import body_of
from runtime.server.requests import Request as Body
from runtime.server.requests import schema_of
from runtime.server.schemas import ErrorAnswer
from runtime.server.service import Served, Service
from runtime.server.ticket import ticket_of, while_there
from runtime.server.work import Work

B = TypeVar("B", bound=Body)
T = TypeVar("T")
Values = NDArray[np.floating]

ERRORS = {
    401: "No token, or another one.",
    403: "A page of another site, or not of this machine.",
    404: "The artifact does not offer this.",
    406: "No such type of answer.",
    413: "Too large a body, protein, number of them, or answer.",
    415: "The body is no JSON.",
    422: "A body that is no request, or proteins that cannot be tokenized.",
    429: "The queue is full: see Retry-After.",
    500: "The engine failed.",
    503: "The server starts or ends: see Retry-After.",
    504: "It took too long.",
}


def service_of(request: Request) -> Service:
    """Of the app."""
    service: Service = request.app.state.service
    return service


def post(
    router: APIRouter, path: str, asks: type[Body], answer: dict[str, Any] | type[BaseModel],
    is_array: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # fmt: skip
    """Declares an endpoint that reads its own body: in bounds, and not in the event loop.

    Args:
        router: of the endpoint.
        path: of it.
        asks: its body.
        answer: its answer, or that one's JSON schema.
        is_array: the answer is to be had as Arrow and .npz too.
    """
    found: dict[str, Any] = {"description": "In the order of the request."}
    if isinstance(answer, dict):
        binary = {"schema": {"type": "string", "format": "binary"}}
        others = {ARROW: binary, NPZ: binary} if is_array else {}
        found["content"] = {JSON: {"schema": answer}, **others}
    else:
        found["model"] = answer
    return router.post(
        path,
        response_class=StreamingResponse,
        responses={200: found, **errors(*ERRORS)},
        openapi_extra={
            "requestBody": {
                "required": True, "content": {JSON: {"schema": schema_of(asks)}},
            }
        },
    )  # fmt: skip


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """As FastAPI takes them."""
    return {each: {"model": ErrorAnswer, "description": ERRORS[each]} for each in statuses}


async def read(request: Request, kind: type[B]) -> B:
    """The body; see ``body_of``. Who is let in here is answered, though the server may end."""
    service = service_of(request)
    service.ready()
    found = await body_of(request, kind, service.limits.timeout)
    service.metrics.tokenization.observe(ticket_of(request).seconds)
    return found


async def run(
    request: Request, make: Callable[[Served, str], Work]
) -> tuple[Served, Work, list[Values]]:
    """Runs what ``make`` makes of a request, in a thread, while its client waits."""
    return await run_of(request, make, lambda work: work)


async def run_of(
    request: Request, make: Callable[[Served, str], T], work_of: Callable[[T], Work]
) -> tuple[Served, T, list[Values]]:
    """As ``run``, where the work is a part of what is made."""
    service = service_of(request)
    ticket = ticket_of(request)
    served = service.served
    assert served is not None  # since ``read``
    # Also while it is made: a reload meanwhile would close what it is made for.
    with served.scheduler.in_use():
        made = await asyncio.to_thread(make, served, ticket.client)
        work = work_of(made)
        if not work.tokens:
            return served, made, []
        running = service.run(served, work, ticket)
        return served, made, await while_there(request, running, service.limits.timeout)


def arrays(
    request: Request, values: Sequence[Values], name: str, shape: Shape = PLAIN
) -> StreamingResponse:
    """Arrays, in the type that the client accepts."""
    kind = answers.chosen(request.headers.get("accept"))
    if not values:
        kind = JSON
    return StreamingResponse(answers.encoded(values, kind, name, shape), media_type=kind)


def check_accepted(request: Request) -> None:
    """Raises NotAcceptable before any work is done."""
    answers.chosen(request.headers.get("accept"))


def nested(depth: int) -> dict[str, Any]:
    """The JSON schema of lists of numbers in lists."""
    schema: dict[str, Any] = {"type": ["number", "null"]}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema
