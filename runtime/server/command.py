"""``esm2-run serve``: an HTTP server of one artifact."""

from pathlib import Path
from typing import Any

import click

from runtime.device import MAX_TOKENS_RULE
from runtime.engine_options import (
    attention_of,
    attention_options,
    concurrency_option,
    device_option,
    engine_option,
    threads_option,
)
from runtime.errors import Esm2Error, InputError
from runtime.one_line_errors import one_line_errors
from runtime.server.settings import MB, EngineChoice, Limits

_DEFAULT = Limits()
_NEEDS = frozenset({"fastapi", "starlette", "uvicorn", "prometheus_client", "orjson", "pydantic"})


@click.command(epilog="Example: esm2-run serve artifacts/NAME --port 8080")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: all interfaces.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option(
    "--max-wait-ms",
    type=click.FloatRange(min=0),
    default=1000 * _DEFAULT.max_wait,
    show_default=True,
    help="How long a pack waits to be filled while an engine is idle.",
)
@click.option(
    "--max-batch-tokens",
    "--max-tokens",
    "max_tokens",
    type=click.IntRange(min=1),
    help=f"Budget of a pack.  [default: {MAX_TOKENS_RULE}]",
)
@click.option(
    "--max-queue-tokens",
    type=click.IntRange(min=1),
    default=_DEFAULT.max_queue_tokens,
    show_default=True,
    help="Tokens that may wait; beyond, requests get 429.",
)
@click.option(
    "--max-client-batch-size",
    type=click.IntRange(min=1),
    default=_DEFAULT.max_client_batch_size,
    show_default=True,
    help="Proteins, or variants, of a request.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    default=_DEFAULT.max_length,
    show_default=True,
    help="Residues of a protein.",
)
@click.option(
    "--max-body-mb",
    type=click.IntRange(min=1),
    default=_DEFAULT.max_body_bytes // MB,
    show_default=True,
    help="Of a request.",
)
@click.option(
    "--max-answer-mb",
    type=click.IntRange(min=1),
    default=_DEFAULT.max_answer_bytes // MB,
    show_default=True,
    help="Numbers of an answer.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULT.timeout,
    show_default=True,
    help="Seconds that a request may take.",
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(min=0),
    default=_DEFAULT.drain_timeout,
    show_default=True,
    help="Seconds to answer what was accepted, after SIGTERM.",
)
@click.option(
    "--token",
    envvar="ESM2_SERVER_TOKEN",
    show_envvar=True,
    help="Requests must bear it: 'Authorization: Bearer TOKEN'. Others see a command line: give "
    "it by the variable.",
)
@click.option("--root-path", default="", help="Where a proxy shows this server, such as /esm2.")
@click.option(
    "--log-level",
    type=click.Choice(("debug", "info", "warning", "error")),
    default="info",
    show_default=True,
)
@click.option(
    "--log-format",
    type=click.Choice(("auto", "json", "text")),
    default="auto",
    show_default=True,
    help="auto: text on a terminal, else a line of JSON each.",
)
@engine_option
@device_option
@attention_options
@threads_option
@concurrency_option
@one_line_errors(Esm2Error, OSError)
def serve(artifact: Path, host: str, port: int, **given: Any) -> None:
    """Serve ARTIFACT over HTTP; proteins of all requests share packs.

    http://HOST:PORT/ is a page to try it, /docs says what can be asked, /metrics is for Prometheus.
    SIGTERM answers what was accepted and ends; SIGHUP loads the artifact anew. TLS is for a proxy
    in front of it.
    """
    try:
        from runtime.server.logs import log_lines
        from runtime.server.running import serve as run
    except ModuleNotFoundError as error:
        if error.name not in _NEEDS:
            raise
        raise InputError(
            f"{error.name} is not installed. pip install 'esm2-engines[server]'"
        ) from None
    log_lines(given["log_level"], given["log_format"])
    run(
        EngineChoice(
            artifact,
            given["engine"],
            given["device"],
            attention_of(given["attention"], given["v1_attention"]),
            given["threads"],
            given["concurrency"],
            given["max_tokens"],
        ),
        Limits(
            given["max_wait_ms"] / 1000,
            given["max_queue_tokens"],
            given["max_client_batch_size"],
            given["max_length"],
            given["max_body_mb"] * MB,
            given["max_answer_mb"] * MB,
            given["timeout"],
            given["drain_timeout"],
            given["token"] or None,
        ),
        host,
        port,
        given["root_path"],
    )
