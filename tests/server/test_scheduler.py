"""When packs are cut: on CPUs for engines side by side, on a card for one behind another."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import runtime
from runtime.engine import Engine
from runtime.packing import PackedBatch
from runtime.server.metrics import Metrics
from runtime.server.scheduler import Scheduler
from runtime.server.work import Kind, Values, Work
from tests.server.process import until

BUDGET = 1024


class Held:
    """Packs that run until they may end, by their tokens."""

    def __init__(self) -> None:
        self.running: list[int] = []
        self.may_end = threading.Event()

    def of_pack(self, engine: Engine, batch: PackedBatch) -> list[Values]:
        self.running.append(batch.num_tokens)
        assert self.may_end.wait(20)
        return [np.zeros(1)] * batch.num_proteins

    def work(self, length: int, count: int = 1) -> Work:
        kind = Kind("held", self.of_pack, lambda tokens: 1)
        return Work(kind, [np.full(length, 5)] * count, "somebody")


@pytest.mark.parametrize(
    ("device", "running"),
    [
        # A short protein is not sent behind a pack that runs, but in the next full pack.
        ("cuda", [100, 50 + 3 * 256]),
        ("cpu", [100, 50]),
    ],
)
def test_what_runs_beside_a_pack(tiny_artifact: Path, device: str, running: list[int]) -> None:
    held = Held()

    async def talk() -> None:
        with runtime.load(tiny_artifact, "onnx") as engine:
            engine.spec = replace(engine.spec, device=device)
            engine.concurrency = 2
            scheduler = Scheduler(engine, BUDGET, 0.0, Metrics())
            jobs = []
            for work in (held.work(100), held.work(50), held.work(256, 8)):
                jobs.append(asyncio.create_task(scheduler.run(work, "id")))
                await until(lambda: bool(held.running))
                await asyncio.sleep(0.05)
            before = list(held.running)
            held.may_end.set()
            assert before == running
            await asyncio.gather(*jobs)
            scheduler.close()
        assert sum(held.running) == 100 + 50 + 8 * 256

    asyncio.run(talk())
