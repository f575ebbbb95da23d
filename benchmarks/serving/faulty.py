"""``esm2-run`` with an engine that fails: the real one, behind a wrapper.

python -m benchmarks.serving.faulty serve ARTIFACT

``ESM2_FAULT_THROW=0.1``: a pack in ten throws, at random. ``ESM2_FAULT_NAN=WWWW``: proteins that
begin so come back as NaN. ``ESM2_FAULT_SLOW=0.05``: a pack takes so many seconds more. The selftest
at the start sees none of it.
"""

import os
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.cli import main
from runtime.engine import Engine, Outputs
from runtime.packing import PackedBatch
from runtime.pooling import Pool
from runtime.server import service
from runtime.server.scheduler import Scheduler
from runtime.tokenizer import encode


class FaultyEngine:
    """An engine whose packs throw, or hold NaN, or take long."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._throws = float(os.environ.get("ESM2_FAULT_THROW", "0"))
        self._slow = float(os.environ.get("ESM2_FAULT_SLOW", "0"))
        self._start = encode(os.environ.get("ESM2_FAULT_NAN", ""))
        self._random = random.Random(0)
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, batch: PackedBatch, names: Sequence[str] | None = None) -> Outputs:
        """The engine's own, with faults."""
        self._fail()
        outputs = self._engine.run(batch, names)
        for start, end in self._broken(batch):
            for tensor in outputs.tensors.values():
                if len(tensor) == batch.cu_seqlens[-1]:
                    tensor[start:end] = np.nan
        return outputs

    def embed(self, batch: PackedBatch, layer: int, how: Pool) -> np.ndarray:
        """The engine's own, with faults."""
        self._fail()
        rows = self._engine.embed(batch, layer, how)
        starts = batch.cu_seqlens[:-1].tolist()
        for start, end in self._broken(batch):
            rows[slice(start, end) if how == "none" else starts.index(start)] = np.nan
        return rows

    def _fail(self) -> None:
        time.sleep(self._slow)
        with self._lock:
            fails = self._random.random() < self._throws
        if fails:
            raise RuntimeError("planted")

    def _broken(self, batch: PackedBatch) -> list[tuple[int, int]]:
        if not len(self._start):
            return []
        bounds = batch.cu_seqlens.tolist()
        begins = 1 + np.arange(len(self._start))
        return [
            (start, end)
            for start, end in zip(bounds[:-1], bounds[1:], strict=True)
            if end - start - 2 >= len(self._start)
            and np.array_equal(batch.input_ids[start + begins], self._start)
        ]


def _faulty(engine: Engine, *arguments: Any) -> Scheduler:
    return Scheduler(FaultyEngine(engine), *arguments)


if __name__ == "__main__":
    service.Scheduler = _faulty  # type: ignore[assignment,misc]
    main()
