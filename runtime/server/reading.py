"""From the bytes of a request to a checked body; in a thread, for it takes time."""

import asyncio
from functools import cache
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from runtime.server.answers import JSON
from runtime.server.problems import Gone, Malformed, TimedOut, WrongMediaType
from runtime.server.ticket import ticket_of

M = TypeVar("M", bound=BaseModel)


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
    """msgspec reads, for it ends at the first mistake: pydantic lists all of them.

    4 MB of ``{"inputs": [1, 1, ...]}`` took it 11 seconds and 1.9 GB.
    """
    try:
        read = msgspec.json.decode(body, type=_types_of(model))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason, _, where = str(error).partition(" - at `$")
        raise _malformed([{"field": where.strip("`."), "reason": reason}]) from None
    given = {name: getattr(read, name) for name in model.model_fields}
    try:
        return model.model_validate(
            {name: value for name, value in given.items() if value is not msgspec.UNSET},
            strict=True,
        )
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise _malformed(
            [{"field": ".".join(map(str, each["loc"])), "reason": each["msg"]} for each in found]
        ) from None


@cache
def _types_of(model: type[BaseModel]) -> type[msgspec.Struct]:
    """The types of its fields; what else is asked of them is the model's own."""
    fields: list[tuple[str, Any, Any]] = [
        (name, field.annotation | msgspec.UnsetType, msgspec.UNSET)
        for name, field in model.model_fields.items()
    ]
    return msgspec.defstruct(model.__name__, fields, forbid_unknown_fields=True)


def _malformed(wrong: list[dict[str, Any]]) -> Malformed:
    first = wrong[0]
    where = f"{first['field']}: " if first["field"] else ""
    return Malformed(f"the body is not valid: {where}{first['reason']}", details=wrong)
