"""What every request passes before a route sees it: limits, token, id, log, counts."""

import asyncio
import hmac
import json
import logging
import re
import uuid
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server.pages import OPEN as PAGES
from runtime.server.problems import Forbidden, Problem, TooLarge, Unauthorized
from runtime.server.service import Service
from runtime.server.ticket import Ticket, give_ticket

logger = logging.getLogger(__name__)

# Who looks after a server bears no token, and is counted nowhere.
OPEN = ("/health", "/health/live", "/health/ready", "/ping")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LONGEST_CLIENT = 128


class Guard:
    """The outermost layer.

    Args:
        app: what is guarded.
        service: whose limits they are.
        paths: of the routes, by which requests are counted.
        work: those of them that have accepted work: a server that ends waits for these.
    """

    def __init__(self, app: ASGIApp, service: Service, paths: Iterable[str], work: Iterable[str]):
        self._app = app
        self._service = service
        self._paths = frozenset(paths)
        self._work = frozenset(work)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        ticket = _ticket(scope, headers)
        give_ticket(scope, ticket)
        path = path_of(scope)
        is_work = path in self._work
        self._service.accepted += is_work
        try:
            answering = _Answering(send, ticket, self._service)
            try:
                self._check(path, headers)
                body = _Bounded(receive, self._service.limits.max_body_bytes)
                await self._app(scope, body, answering)
            except Problem as problem:
                if not answering.began:
                    await answer_of(problem, ticket, path)(scope, receive, answering)
        finally:
            self._service.accepted -= is_work
            for end in ticket.at_end:
                end()
            self._account_for(scope["method"], path, ticket)

    def _check(self, path: str, headers: Headers) -> None:
        limits = self._service.limits
        if limits.token is not None and path not in OPEN and path not in PAGES:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            is_right = hmac.compare_digest(given.strip().encode(), limits.token.encode())
            if scheme.lower() != "bearer" or not is_right:
                raise Unauthorized("give the server's token: 'Authorization: Bearer TOKEN'")
        # A page of another site must not use the server of whoever looks at it.
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            raise Forbidden(f"pages of {origin} may not use this server")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > limits.max_body_bytes:
            raise _too_large(limits.max_body_bytes)

    def _account_for(self, verb: str, path: str, ticket: Ticket) -> None:
        if path in OPEN or path == "/metrics":
            return
        method = "/" if path in PAGES else path if path in self._paths else "other"
        metrics = self._service.metrics
        metrics.requests.labels(method, str(ticket.status)).inc()
        metrics.duration.labels(method).observe(ticket.seconds)
        if ticket.error:
            metrics.failures.labels(ticket.error).inc()
        logger.info(
            "request",
            extra={
                "request_id": ticket.id, "client": ticket.client, "method": verb,
                "path": method, "status": ticket.status, "error": ticket.error or None,
                "seconds": round(ticket.seconds, 6), "sequences": ticket.sequences,
                "tokens": ticket.tokens,
            },
        )  # fmt: skip


class _Bounded:
    """A body of at most so many bytes, whatever its head says."""

    def __init__(self, receive: Receive, most: int):
        self._receive = receive
        self._most = most
        self._got = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._got += len(message.get("body", b""))
        if self._got > self._most:
            raise _too_large(self._most)
        return message


class _Answering:
    """Sends with the request's id; a client that takes nothing for too long is let go."""

    def __init__(self, send: Send, ticket: Ticket, service: Service):
        self._send = send
        self._ticket = ticket
        self._service = service
        self.began = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.began = True
            self._ticket.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._ticket.id
            if self._ticket.model:
                headers["X-Model-SHA256"] = self._ticket.model
            if self._service.is_draining:
                headers["Connection"] = "close"
        await asyncio.wait_for(self._send(message), self._service.limits.timeout)


def path_of(scope: Scope) -> str:
    """As the routes name it: without --root-path, which uvicorn puts before it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def answer_of(problem: Problem, ticket: Ticket, path: str) -> Response:
    """What a client is told.

    The shape is Text Embeddings Inference's, and OpenAI's for its own routes.
    """
    ticket.error = problem.kind
    ticket.status = problem.status
    headers = {}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(problem.retry_after)
    if isinstance(problem, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if path.startswith("/v1/"):
        error = {"message": problem.message, "type": problem.kind, "param": None, "code": None}
        body: dict[str, object] = {"error": error}
    else:
        body = {"error": problem.message, "error_type": problem.kind}
    body["request_id"] = ticket.id
    if problem.details:
        body["details"] = problem.details
    return Response(
        json.dumps(body), problem.status, headers=headers, media_type="application/json"
    )


def _ticket(scope: Scope, headers: Headers) -> Ticket:
    given = headers.get("x-request-id", "")
    client = headers.get("x-client-id", "")[:_LONGEST_CLIENT]
    if not client:
        client = scope["client"][0] if scope.get("client") else "unknown"
    return Ticket(given if _ID.fullmatch(given) else uuid.uuid4().hex, client)


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"the body has more than {most:,} bytes (--max-body-mb): split the request")
