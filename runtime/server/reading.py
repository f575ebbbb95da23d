"""From the bytes of a request to a checked body; in a thread, for it takes time."""

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from runtime.server.answers import JSON
from runtime.server.problems import Gone, Malformed, TimedOut, WrongMediaType
from runtime.server.ticket import ticket_of

M = TypeVar("M", bound=BaseModel)
MOST_LISTED = 20


async def body_of(request: Request, model: type[M], timeout: float) -> M:
    """The body, as ``model``.

    Raises:
        WrongMediaType: it is no JSON.
        Malformed: it is JSON, and not what is asked for; says where.
        TimedOut: it came too slowly.
        Gone: the client hung up.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise WrongMediaType(
            f"send {JSON}, got {kind or 'no Content-Type'}: curl needs -H 'Content-Type: {JSON}'"
        )
    try:
        left = max(0.0, timeout - ticket_of(request).seconds)
        body = await asyncio.wait_for(request.body(), left)
    except ClientDisconnect:
        raise Gone("the client has hung up") from None
    except TimeoutError:
        raise TimedOut(f"the body did not come within {timeout:g} seconds") from None
    return await asyncio.to_thread(_parsed, body, model)


def _parsed(body: bytes, model: type[M]) -> M:
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        wrong = [
            {"field": ".".join(map(str, each["loc"])), "reason": each["msg"]}
            for each in found[:MOST_LISTED]
        ]
        first = wrong[0]
        where = f"{first['field']}: " if first["field"] else ""
        raise Malformed(f"the body is not valid: {where}{first['reason']}", details=wrong) from None
