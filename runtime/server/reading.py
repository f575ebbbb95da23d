"""From the bytes of a request to a checked body; in a thread, for it takes time."""

import asyncio
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from runtime.server import requests
from runtime.server.answers import JSON
from runtime.server.problems import Gone, Malformed, TimedOut, WrongMediaType
from runtime.server.ticket import ticket_of

R = TypeVar("R", bound=requests.Request)


async def body_of(request: Request, kind: type[R], timeout: float) -> R:
    """The body, as ``kind``.

    Raises:
        WrongMediaType: it is no JSON.
        Malformed: it is JSON, and not what is asked for; says where.
        TimedOut: it came too slowly.
        Gone: the client hung up.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != JSON:
        raise WrongMediaType(
            f"send {JSON}, got {media or 'no Content-Type'}: curl needs -H 'Content-Type: {JSON}'"
        )
    try:
        left = max(0.0, timeout - ticket_of(request).seconds)
        body = await asyncio.wait_for(request.body(), left)
    except ClientDisconnect:
        raise Gone("the client has hung up") from None
    except TimeoutError:
        raise TimedOut(f"the body did not come within {timeout:g} seconds") from None
    return await asyncio.to_thread(_parsed, body, kind)


def _parsed(body: bytes, kind: type[R]) -> R:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason, _, place = str(error).partition(" - at `$")
        field = place.strip("`.")
        where = f"{field}: " if field else ""
        wrong = {"field": field, "reason": reason}
        raise Malformed(f"the body is not valid: {where}{reason}", details=[wrong]) from None
