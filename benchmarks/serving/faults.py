"""The campaign: every fault at length, a line each.

python -m benchmarks.serving.faults ARTIFACT OTHER

OTHER is of the same proteins' width with other weights, for reloads. About half an hour on a small
artifact; ``--only`` names single ones.
"""

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.serving import bodies, clients, engines, lifecycle, memory, openapi
from benchmarks.serving.process import FAULTY, Server
from benchmarks.serving.traffic import Truth, proteins


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.argument("other", type=click.Path(path_type=Path, exists=True))
@click.option("--only", multiple=True, help="Of these names alone.")
@click.option("--cases", default=1000, show_default=True, help="Bodies of each generator.")
@click.option("--requests", default=200_000, show_default=True, help="For the memory.")
def main(artifact: Path, other: Path, only: tuple[str, ...], cases: int, requests: int) -> None:
    """Run the faults; the first that loses anything ends it."""
    truth = Truth.of(proteins(200, longest=300), artifact)
    short = Truth.of(proteins(500, workload="short"), artifact)

    def on_server(
        fault: Callable[[Server], Any], *options: object, **keywords: Any
    ) -> Callable[[], Any]:
        def run() -> Any:
            with Server(artifact, *options, **keywords) as server:
                return fault(server)

        return run

    def reloads() -> Any:
        both = Truth.of(truth.sequences, artifact, other)
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / "link"
            link.symlink_to(artifact)
            damaged = Path(folder) / "damaged"
            shutil.copytree(artifact, damaged, copy_function=shutil.copyfile)
            weights = damaged / "weights.safetensors"
            weights.write_bytes(weights.read_bytes()[:-8] + bytes(8))
            with Server(link) as server:
                found = asyncio.run(lifecycle.reload(server, link, [artifact, other], both, 20))
                return found, asyncio.run(lifecycle.reload_damaged(server, link, damaged, both))

    slow = {"ESM2_FAULT_SLOW": "0.05"}
    faults: dict[str, Callable[[], Any]] = {
        "hang-up": on_server(lambda s: asyncio.run(clients.hang_up(s, truth, 300))),
        "slow-senders": on_server(lambda s: asyncio.run(clients.trickle(s, truth, 100, 10))),
        "slow-readers": on_server(lambda s: asyncio.run(clients.sip(s, truth, 20, 0.05))),
        "stall": on_server(lambda s: asyncio.run(clients.stall(s, truth, 5)), "--timeout", 5),
        "bodies": on_server(lambda s: dict(sorted(bodies.own(s, cases).items()))),
        "schema": on_server(lambda s: dict(sorted(openapi.of_schema(s, cases).items()))),
        "huge": on_server(lambda s: bodies.huge(s, 32 << 20)),
        "throw": lambda: asyncio.run(engines.throw(artifact, truth, share=0.1, seconds=20)),
        "nan": lambda: asyncio.run(engines.not_a_number(artifact, truth, rounds=50)),
        "sigterm": on_server(
            lambda s: asyncio.run(lifecycle.end(s, short, 5)), command=FAULTY, environment=slow
        ),
        "reload": reloads,
        "fair": on_server(lambda s: asyncio.run(memory.fair(s, short, 10_000, 5))),
        "memory": on_server(lambda s: asyncio.run(memory.flat(s, short, requests, 16))),
    }
    for name in only or faults:
        began = time.perf_counter()
        found = faults[name]()
        took = time.perf_counter() - began
        click.echo(f"{name:13} {took:6.1f} s  {json.dumps(found)}")


if __name__ == "__main__":
    main()
