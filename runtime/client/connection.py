"""Sends a request until it is answered, or until there is no hope that it will be."""

import json
import logging
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from threading import Event
from typing import TYPE_CHECKING, Any

from runtime.errors import EngineError, Esm2Error, InputError, UnsupportedError

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

JSON = "application/json"
NPZ = "application/x-npz"

# A full queue, a server that starts or ends, and a proxy that has none behind it for a moment.
RETRIED = (429, 502, 503)
# Seconds, at most, that are waited of one's own accord: before the second attempt, and before any.
FIRST_WAIT = 0.25
LONGEST_WAIT = 30.0
CONNECT_TIMEOUT = 10.0
_SHOWN = 300

_ERRORS: dict[int, type[Esm2Error]] = {
    401: InputError,
    403: InputError,
    404: UnsupportedError,
    413: InputError,
    422: InputError,
}


@dataclass(frozen=True)
class Answer:
    """What came.

    Attributes:
        content: of the body.
        model: SHA-256 of the manifest of the artifact that answered; empty where it says none.
        id: of the request.
    """

    content: bytes
    model: str
    id: str


class Connection:
    """To one server; may be used by several threads at once.

    Args:
        url: of the server.
        token: that it wants, if any.
        timeout: seconds that one attempt may take.
        at_once: connections.
        attempts: at most, for each request.
        patience: seconds from a request's first attempt to its last, at most.
    """

    def __init__(
        self, url: str, token: str | None, timeout: float, at_once: int, attempts: int,
        patience: float,
    ):  # fmt: skip
        try:
            import httpx
        except ModuleNotFoundError:
            raise InputError("httpx is not installed. pip install 'esm2-engines[client]'") from None
        if not url.startswith(("http://", "https://")):
            raise InputError(f"a server's URL is such as http://127.0.0.1:8080, got {url!r}")
        self._url = url.rstrip("/")
        self._attempts = attempts
        self._patience = patience
        try:
            self._http = httpx.Client(
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
                limits=httpx.Limits(max_connections=at_once),
            )
            httpx.URL(url)
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise InputError(f"cannot use the URL {url!r} or the token: {error}") from None

    def send(
        self, method: str, path: str, body: dict[str, Any] | None, accept: str,
        names: Sequence[str], stop: Event,
    ) -> Answer:  # fmt: skip
        """An answer; all requests are safe to repeat.

        Args:
            method, path: of HTTP.
            body: as JSON.
            accept: type of the answer.
            names: of the records that are sent, for messages.
            stop: ends a wait, with an error.

        Raises:
            InputError: the server refuses what was sent, or the token.
            UnsupportedError: it does not offer this.
            EngineError: it failed, or did not answer within the attempts and the patience.
        """
        import httpx

        began, id_ = time.monotonic(), uuid.uuid4().hex
        for attempt in range(self._attempts):
            told = None
            try:
                response = self._http.request(
                    method, self._url + path, json=body,
                    headers={"Accept": accept, "X-Request-ID": id_},
                )  # fmt: skip
                if response.is_success:
                    model = response.headers.get("x-model-sha256", "")
                    return Answer(response.content, model, id_)
                if response.status_code not in RETRIED:
                    raise _error_of(response, id_, names)
                error = _error_of(response, id_, names)
                told = seconds_of(response.headers.get("retry-after"))
            except (httpx.ReadTimeout, httpx.WriteTimeout):
                raise EngineError(
                    f"{self._url} did not answer within the timeout (request {id_}). Give a larger "
                    "one, or fewer proteins"
                ) from None
            except httpx.HTTPError as failure:
                reason = str(failure) or type(failure).__name__
                error = EngineError(f"{self._url} cannot be reached: {reason} (request {id_})")
            wait = wait_before(attempt, told)
            spent = time.monotonic() - began
            if attempt + 1 == self._attempts or spent + wait > self._patience:
                raise EngineError(f"{error}, after {attempt + 1} attempts in {spent:.0f} s")
            logger.warning("%s. Asked again in %.1f s", error, wait)
            if stop.wait(wait):
                break
        raise EngineError(f"request {id_} was given up, as another failed")

    def close(self) -> None:
        """Ends the connections."""
        self._http.close()


def wait_before(attempt: int, told: float | None) -> float:
    """Seconds until the next attempt: what the server said and a random time on top.

    Clients that were refused at once would else come again at once. See "full jitter" in
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.

    Args:
        attempt: that failed, from 0.
        told: seconds of ``Retry-After``.
    """
    return (told or 0.0) + random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**attempt))


def seconds_of(retry_after: str | None) -> float | None:
    """Of the header: a number, or a date as proxies give; None of what is neither."""
    try:
        return max(0.0, float(retry_after or ""))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(retry_after or "")
        return max(0.0, (until - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError):
        return None


def _error_of(response: "httpx.Response", id_: str, names: Sequence[str]) -> Esm2Error:
    status = response.status_code
    id_ = response.headers.get("x-request-id", id_)
    try:
        body = json.loads(response.content)
        sentence = str(body["error"])
        record = (body.get("details") or [{}])[0].get("record")
    except (ValueError, KeyError, TypeError, AttributeError, LookupError):
        sentence, record = f"{response.url} answered {response.text[:_SHOWN]!r}", None
    if isinstance(record, int) and record < len(names) and names[record] != str(record):
        sentence += f". Number {record} of this request is {names[record]!r}"
    return _ERRORS.get(status, EngineError)(f"{sentence} (HTTP {status}, request {id_})")
