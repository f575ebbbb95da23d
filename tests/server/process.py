"""``esm2-run serve`` in a process of its own, and servers that answer what a test says."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

from benchmarks.serving.process import Server
from tests.conftest import default_signals


@contextmanager
def serving(artifact: Path, *options: str, port: int = 0, token: str = "") -> Iterator[Server]:
    """One thread, and no wait for a pack to be filled, until the block ends."""
    given = ("--threads", "1", "--max-wait-ms", "1", *options)
    environment = {"ESM2_SERVER_TOKEN": token}
    with default_signals():
        server = Server(artifact, *given, environment=environment, port=port)
    with server:
        yield server


async def until(what: Callable[[], bool]) -> None:
    """Waits for something of this event loop, five seconds at most."""
    for _ in range(500):
        if what():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


@dataclass
class Scripted:
    """What a server that knows nothing of proteins answers, one after the other.

    Attributes:
        answers: status, headers, body; None hangs up. The last is given again and again.
        times: when each request came, on the monotonic clock.
        ids: ``X-Request-ID`` of each.
    """

    answers: list[tuple[int, dict[str, str], bytes] | None]
    times: list[float] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


@contextmanager
def scripted(script: Scripted) -> Iterator[str]:
    """Its URL. For what a real server does not do when it is asked to."""
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            # A client's requests come in threads, and each is the next.
            with lock:
                answer = script.answers[min(len(script.times), len(script.answers) - 1)]
                script.times.append(time.monotonic())
                script.ids.append(self.headers["X-Request-ID"])
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if answer is None:
                self.close_connection = True
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
