"""Requests that schemathesis makes of the server's own OpenAPI schema, half of them against it."""

from collections import Counter

import schemathesis
from hypothesis import given, seed
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks.serving.bodies import bounded
from benchmarks.serving.process import Server

RELOAD = "/-/reload"
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance,
    response_schema_conformance,
]  # fmt: skip


def of_schema(server: Server, cases: int, number: int = 0) -> Counter[int]:
    """Asks every path but ``RELOAD``.

    Returns:
        How many answers were of each status.

    Raises:
        schemathesis.core.failures.FailureGroup: a 5xx, a status or a body that is not documented.
    """
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [
        operation.ok() for operation in schema.get_all_operations() if operation.ok().path != RELOAD
    ]
    found: Counter[int] = Counter()
    for operation in operations:
        has_body = bool(operation.body)
        modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE) if has_body else (None,)
        for mode in modes:
            strategy = operation.as_strategy(mode or GenerationMode.POSITIVE)

            @seed(number)
            @bounded(max(1, cases // (2 * len(operations))) if has_body else 1)
            @given(strategy)
            def check(case: schemathesis.Case) -> None:
                answer = case.call(base_url=server.url)
                found[answer.status_code] += 1
                case.validate_response(answer, checks=CHECKS)

            check()
    return found
