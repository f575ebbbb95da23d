"""A server in a process of its own: started, asked how it stands, ended."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]
ESM2_RUN = (sys.executable, "-m", "runtime.cli")
FAULTY = (sys.executable, "-m", "benchmarks.serving.faulty")


class NotServingError(Exception):
    """A server did not start, or not in time; the message is the end of its log."""


class Server:
    """``esm2-run serve`` on this machine; a context manager.

    Args:
        artifact: to serve, or a link to it.
        options: of ``esm2-run serve``.
        command: that is started; ``FAULTY`` for planted faults.
        environment: added to this process's.
        port: where to listen; 0 takes a free one.

    Attributes:
        url: where it listens.
        ready_s: seconds from its start until it was ready.

    Raises:
        NotServingError: it ended before it was ready, or was not ready within two minutes.
    """

    def __init__(
        self,
        artifact: Path,
        *options: object,
        command: Sequence[str] = ESM2_RUN,
        environment: dict[str, str] | None = None,
        port: int = 0,
    ):
        self._log = tempfile.NamedTemporaryFile(prefix="serve-", suffix=".log")  # noqa: SIM115
        born = time.perf_counter()
        self._process = subprocess.Popen(
            [*command, "serve", str(artifact), "--port", str(port), *map(str, options)],
            cwd=ROOT,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **(environment or {})},
        )
        try:
            self.url = self._wait_for_url(born + 120)
            self._wait_until_ready(born + 120)
        except BaseException:
            self.kill()
            raise
        self.ready_s = time.perf_counter() - born

    # --- its state ------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    @property
    def rss_mb(self) -> float:
        """Resident memory."""
        return psutil.Process(self.pid).memory_info().rss / 2**20

    def log(self) -> str:
        """All that it has logged."""
        return Path(self._log.name).read_text(errors="replace")

    def log_lines(self) -> list[dict[str, Any]]:
        """What it has logged as JSON."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def metrics(self) -> dict[str, float]:
        """Each sample of ``/metrics`` by its name and labels as they are written there."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def wait_until_idle(self, seconds: float = 30) -> None:
        """Until nothing waits, runs or is held. Raises NotServingError where it does not end."""
        until = time.monotonic() + seconds
        names = ("te_queue_size", "esm2_queue_tokens", "esm2_answers_bytes")
        while any(left := [self.metrics()[name] for name in names]):
            if time.monotonic() > until:
                raise NotServingError(f"never idle: {dict(zip(names, left, strict=True))}")
            time.sleep(0.05)

    def wait_until_held(self, most: int, seconds: float = 30) -> None:
        """Until answers hold so few bytes. Raises NotServingError where they go on to hold more."""
        until = time.monotonic() + seconds
        while (held := self.metrics()["esm2_answers_bytes"]) > most:
            if time.monotonic() > until:
                raise NotServingError(f"answers hold {held:,.0f} bytes")
            time.sleep(0.05)

    # --- its end --------------------------------------------------------------------------------

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self._process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Its exit status. Raises subprocess.TimeoutExpired."""
        return self._process.wait(seconds)

    def kill(self) -> None:
        """Ends it at once; a second time does nothing."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def _wait_for_url(self, until: float) -> str:
        while (found := re.search(r"listening at (http://[^\"\s]+)", self.log())) is None:
            self._check(until)
        return found[1]

    def _wait_until_ready(self, until: float) -> None:
        with httpx.Client() as client:
            while client.get(f"{self.url}/health/ready").status_code != 200:
                self._check(until)

    def _check(self, until: float) -> None:
        if self._process.poll() is not None or time.perf_counter() > until:
            raise NotServingError(self.log()[-2000:])
        time.sleep(0.01)
