"""How long ``/health/live`` takes, asked again and again from a process of its own.

python -m benchmarks.serving.probe PORT: asks each 5 ms until its stdin ends, then writes the delays
in seconds as JSON. A client that itself parses answers would measure itself.
"""

import http.client
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
EACH_S = 0.005


@contextmanager
def probing(port: int) -> Iterator[list[float]]:
    """Yields a list that holds the delays in seconds, ascending, once it is left."""
    command = [sys.executable, "-m", "benchmarks.serving.probe", str(port)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    delays: list[float] = []
    assert process.stdout is not None
    process.stdout.readline()  # it has begun
    try:
        yield delays
    finally:
        output, _ = process.communicate()
        delays += sorted(json.loads(output))


def main() -> None:
    """Asks until stdin ends."""
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    delays = []
    print(flush=True)
    while not select.select([sys.stdin], [], [], EACH_S)[0]:
        began = time.perf_counter()
        connection.request("GET", "/health/live")
        connection.getresponse().read()
        delays.append(time.perf_counter() - began)
    print(json.dumps(delays))


if __name__ == "__main__":
    main()
