"""The parent's end of a worker: it starts one, asks, and ends it."""

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]


class WorkerDiedError(Exception):
    """The message is the last line that the worker wrote to stderr."""


class DoesNotFitError(WorkerDiedError):
    """There is no memory for a batch; the contender lives."""


class Worker:
    """A process that answers one JSON line with another; see ``benchmarks/peers/serve.py``.

    Thread pools that share a process disturb each other, hence a process for each contender.

    Attributes:
        started: the worker's first answer.
        age_s: seconds since the process was started.

    Raises:
        WorkerDiedError: it ended before it answered.
    """

    def __init__(self, command: Sequence[object]):
        self._born = time.perf_counter()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [str(argument) for argument in command],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.started: dict[str, Any] = self._answer()

    @property
    def age_s(self) -> float:
        """Seconds since the process was started."""
        return time.perf_counter() - self._born

    def ask(self, what: str, **fields: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"what": what, **fields}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer tells why
        return self._answer()

    def close(self) -> None:
        """Ends the process; a second time it does nothing."""
        if not self._errors.closed:
            self._process.kill()
            self._process.communicate()
            self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines()
            self.close()
            raise WorkerDiedError(lines[-1] if lines else f"exit {self._process.returncode}")
        return json.loads(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
