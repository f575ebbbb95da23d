"""Why a request is not answered: the status, a name for programs, and a sentence for people."""

from typing import Any


class Problem(Exception):  # noqa: N818
    """A request that is refused, or that failed.

    Attributes:
        status: of HTTP.
        kind: ``error_type``, as Text Embeddings Inference names them.
        message: what failed, expected, got, what to do.
        retry_after: seconds, where the same request may succeed later.
        details: of each record that is wrong.
    """

    status = 500
    kind = "Backend"

    def __init__(
        self,
        message: str,
        *,
        retry_after: int | None = None,
        details: list[dict[str, Any]] | None = None,
    ):
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.details = details or []


class Malformed(Problem):
    """A body that is no request, or asks for what there is not."""

    status, kind = 422, "Validation"


class Untokenizable(Problem):
    """Records that are no proteins."""

    status, kind = 422, "Tokenizer"


class TooLarge(Problem):
    """A body, a protein, or a number of them beyond the limits."""

    status, kind = 413, "Validation"


class WrongMediaType(Problem):
    """A body, or an answer, of a type that there is not."""

    status, kind = 415, "Validation"


class NotAcceptable(Problem):
    """An answer of a type that there is not."""

    status, kind = 406, "Validation"


class Unauthorized(Problem):
    """No token, or another one."""

    status, kind = 401, "Unauthorized"


class Forbidden(Problem):
    """What only some may do."""

    status, kind = 403, "Forbidden"


class Missing(Problem):
    """What this artifact does not offer."""

    status, kind = 404, "NotFound"


class Overloaded(Problem):
    """The queue is full."""

    status, kind = 429, "Overloaded"


class NotReady(Problem):
    """The server starts, or ends."""

    status, kind = 503, "Unhealthy"


class TimedOut(Problem):
    """It took too long."""

    status, kind = 504, "Timeout"


class Failed(Problem):
    """The engine failed."""


class Gone(Problem):
    """The client has hung up; nobody reads this."""

    status, kind = 499, "Cancelled"
