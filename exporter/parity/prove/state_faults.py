"""Faults that no first run shows: what an engine keeps from one pack to the next, or shares."""

import time
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from exporter.parity import gate
from exporter.parity.prove.replaced import replaced
from exporter.planted import Fault, RuntimeFault
from runtime.engine import Engine, Outputs
from runtime.loading import load
from runtime.packing import PackedBatch

# Together with the gate's own repetitions more than 40 runs.
SMALL = (
    "one residue", "one token", "one token alone", "two tokens", "every token", "nearly all masks",
)  # fmt: skip


class _Faulty:
    """An engine with another ``run``."""

    def __init__(self, engine: Engine):
        self._engine: Any = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __enter__(self) -> "_Faulty":
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()


class _KeepsByBounds(_Faulty):
    """Takes packs of the same lengths for one pack."""

    def __init__(self, engine: Engine):
        super().__init__(engine)
        self._kept: dict[bytes, Outputs] = {}

    def run(self, batch: PackedBatch) -> Outputs:
        bounds = batch.cu_seqlens.tobytes()
        if bounds not in self._kept:
            self._kept[bounds] = self._engine.run(batch)
        return self._kept[bounds]


class _WrongNowAndThen(_Faulty):
    """One answer of 40 is off by a hair."""

    def __init__(self, engine: Engine):
        super().__init__(engine)
        self._numbers = count(1)

    def run(self, batch: PackedBatch) -> Outputs:
        wrong = next(self._numbers) % 40 == 0
        outputs: Outputs = self._engine.run(batch)
        return Outputs({k: x * 1.001 if wrong else x for k, x in outputs.tensors.items()})


class _SharesItsInput(_Faulty):
    """Two callers write their pack to one place."""

    _batch: PackedBatch

    def run(self, batch: PackedBatch) -> Outputs:
        self._batch = batch
        time.sleep(0.002)  # the other thread's turn
        outputs: Outputs = self._engine.run(self._batch)
        return outputs


def _loading(faulty: Callable[[Engine], _Faulty]) -> Callable[[], Any]:
    return lambda: replaced(gate, "load", lambda *args, **kw: faulty(load(*args, **kw)))


def state_faults() -> Iterable[Fault]:
    """Planted around an engine, in every format alike."""
    planted: list[tuple[str, Callable[[Engine], _Faulty], tuple[str, ...]]] = [
        ("answers kept by the lengths of a pack", _KeepsByBounds,
         ("many masks", "many masks, others")),
        ("one run of 40 wrong", _WrongNowAndThen, SMALL),
        ("two callers share a buffer", _SharesItsInput, SMALL),
    ]  # fmt: skip
    return [RuntimeFault(name, "state", _loading(make), packs=on) for name, make, on in planted]
