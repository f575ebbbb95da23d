"""An engine that answers otherwise the second time is no engine."""

import dataclasses
import threading
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import runtime
from exporter.parity.gate import ROUNDS
from exporter.parity.prove.state_faults import _KeepsByBounds, _SharesItsInput, _WrongNowAndThen
from exporter.parity.truth.packs import as_batch, parity_packs
from runtime import repeats
from runtime.engine import Engine, EngineSpec, Outputs
from runtime.packing import PackedBatch
from runtime.repeats import First

pytestmark = pytest.mark.slow

NAMES = (
    "one residue",
    "one token",
    "two tokens",
    "one token alone",
    "every token",
    "nearly all masks",
)


def first(engine: Engine) -> dict[str, First]:
    batches = {name: as_batch(parity_packs()[name]) for name in NAMES}
    return {name: (batch, engine.run(batch)) for name, batch in batches.items()}


@pytest.mark.parametrize("name", ["onnx", "torchscript"])
def test_a_good_engine_gives_the_same_bits(tiny_artifact: Path, name: str) -> None:
    with runtime.load(tiny_artifact, name, "cpu", threads=2) as engine:
        assert repeats.problems(engine, first(engine), ROUNDS) == []


class _PassEachOther(_SharesItsInput):
    """Runs of one length, each caller's half a run behind the other's."""

    def __init__(self, engine: Engine):
        super().__init__(engine)
        self._callers, self._of_thread = count(), threading.local()

    def run(self, batch: PackedBatch) -> Outputs:
        if not hasattr(self._of_thread, "number"):
            self._of_thread.number = next(self._callers)
            time.sleep(0.02 * self._of_thread.number)
        outputs = super().run(batch)
        time.sleep(0.04)
        return outputs


@pytest.mark.parametrize("faulty", [_WrongNowAndThen, _SharesItsInput, _PassEachOther])
def test_others_do_not(tiny_artifact: Path, faulty: type[_KeepsByBounds]) -> None:
    with faulty(runtime.load(tiny_artifact, "onnx", "cpu")) as engine:
        found = repeats.problems(engine, {**first(engine), **first(engine)}, ROUNDS)  # type: ignore[arg-type]
    assert found
    assert all("gets other answers when it is run again" in problem for problem in found)


class OnACard:
    """Gives the answers that it is told to."""

    def __init__(self, spec: EngineSpec, answer: np.ndarray):
        self.spec, self._answer = spec, answer

    def run(self, batch: PackedBatch) -> Outputs:
        return Outputs({"representations.2": self._answer})


@pytest.mark.parametrize(("change", "is_same"), [(1e-7, True), (1e-5, False), (np.nan, False)])
def test_a_card_may_add_in_its_own_order(tiny_artifact: Path, change: float, is_same: bool) -> None:
    with runtime.load(tiny_artifact, "onnx", "cpu") as engine:
        before = first(engine)["every token"]
        spec = dataclasses.replace(engine.spec, device="cuda:1")
    rows = before[1].tensors["representations.2"]
    card = OnACard(spec, rows * (1 + change))
    answered = {"every token": (before[0], Outputs({"representations.2": rows}))}
    assert (repeats.problems(card, answered, ROUNDS) == []) is is_same  # type: ignore[arg-type]
