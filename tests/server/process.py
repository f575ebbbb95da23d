"""``esm2-run serve`` in a process of its own, and servers that answer what a test says."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from tests.conftest import default_signals

LONGEST_START = 60.0
LONGEST_END = 30.0


@dataclass
class Server:
    """A process.

    Attributes:
        url: where it listens.
        process: it.
        log: its lines of JSON, as far as they were written.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait_until_ready(self) -> None:
        until = time.monotonic() + LONGEST_START
        while time.monotonic() < until and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health/ready", timeout=5).close()
                return
            except urllib.error.HTTPError as error:
                error.close()
                time.sleep(0.02)
        raise AssertionError(f"the server is not ready: {self.log.read_text()}")


@contextmanager
def serving(
    artifact: Path, folder: Path, *options: str, port: int = 0, token: str = ""
) -> Iterator[Server]:
    """Serves until the block ends, or the process was ended in it; logs go below ``folder``."""
    log = folder / f"server-{time.monotonic_ns()}.log"
    command = [
        sys.executable, "-m", "runtime.cli", "serve", str(artifact), "--port", str(port),
        "--threads", "1", "--max-wait-ms", "1", *options,
    ]  # fmt: skip
    with log.open("wb") as said, default_signals():
        process = subprocess.Popen(
            command, stderr=said, env=os.environ | {"ESM2_SERVER_TOKEN": token}
        )
    try:
        server = Server(_address(process, log), process, log)
        server.wait_until_ready()
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(LONGEST_END)
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + LONGEST_START
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text().splitlines():
            _, found, url = json.loads(line)["message"].partition("listening at ")
            if found:
                return url
        time.sleep(0.02)
    raise AssertionError(f"the server does not listen: {log.read_text()}")


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

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            script.times.append(time.monotonic())
            script.ids.append(self.headers["X-Request-ID"])
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = script.answers[min(len(script.times), len(script.answers)) - 1]
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
