"""Packs one after the other, with a stand-in that lets every wait for the card last.

``python -m tests.cuda.overlap ARTIFACT ENGINE``; prints the time that they took in waits: 1 where
the host waits for a pack before it queues the next, half of it where two are on their way.
"""

import ctypes
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

import runtime
from runtime.packing import PackedBatch
from tests.cuda.forward import pack

WAIT_MS, PACKS = 100, 10


def main() -> None:
    """Prints the ratio."""
    with runtime.load(Path(sys.argv[1]), sys.argv[2], "cuda", check_files=False) as engine:

        def embed(batch: PackedBatch) -> None:
            engine.embed(batch, engine.spec.layers[-1], "mean")

        embed(pack(300))
        ctypes.CDLL(None).setenv(b"CUDA_STAND_IN_WAIT_MS", str(WAIT_MS).encode(), 1)
        started = time.perf_counter()
        # As the runner does.
        with ThreadPoolExecutor(engine.concurrency) as workers:
            list(workers.map(embed, [pack(300)] * PACKS))
    click.echo(f"{(time.perf_counter() - started) / (PACKS * WAIT_MS / 1000):.2f}")


if __name__ == "__main__":
    main()
