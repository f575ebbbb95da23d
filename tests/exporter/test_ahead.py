"""Eager fair-esm's answers from a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from exporter.model.reference import Reference, WeightsSource, load_reference
from exporter.parity.truth import oracle
from exporter.parity.truth.ahead import answered_ahead, is_worth_it
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.packs import Protein

PACKS = {"one": [Protein("MKT"), Protein("GAVLI")], "other": [Protein("W")]}
DTYPES = torch.float64, torch.float32


@pytest.fixture
def load(tiny_checkpoint: Path) -> Callable[[], Reference]:
    return partial(load_reference, WeightsSource("checkpoint", str(tiny_checkpoint)))


def answers_of(
    load: Callable[[], Reference], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[np.ndarray]:
    """Those of the cache: nothing is computed."""
    with monkeypatch.context() as patched:
        patched.setattr(oracle._Eager, "run", None)
        return [
            answers.tensors["logits"]
            for dtype in DTYPES
            for answers in run_eager(load(), PACKS, (1, 2), "mean", dtype, Cache(folder)).values()
        ]


def fail() -> Reference:
    raise OSError("no such weights")


@pytest.mark.parametrize("theirs", ["answers", "fails", "takes too long"])
def test_who_asks_the_cache_afterwards_computes_nothing(
    theirs: str, load: Callable[[], Reference], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Whoever answered: the numbers are the same to the last bit, and nothing is said."""
    ahead = {"answers": load, "fails": fail, "takes too long": partial(time.sleep, 300)}[theirs]
    monkeypatch.setattr("exporter.parity.truth.ahead.default_threads", lambda: 2)
    threads, folder = torch.get_num_threads(), tmp_path / "ahead"
    with answered_ahead(load(), ahead, PACKS, (1, 2), "mean", DTYPES, Cache(folder)):
        if theirs == "answers":
            end = time.monotonic() + 60
            while len(list(folder.glob("*.npz"))) < len(DTYPES) * len(PACKS):
                assert time.monotonic() < end
                time.sleep(0.02)
    assert torch.get_num_threads() == threads
    found = answers_of(load, folder, monkeypatch)
    assert [str(logits.dtype) for logits in found] == ["float64"] * 2 + ["float32"] * 2
    alone = tmp_path / "alone"
    torch.set_num_threads(1)
    for dtype in DTYPES:
        run_eager(load(), PACKS, (1, 2), "mean", dtype, Cache(alone))
    torch.set_num_threads(threads)
    for one, other in zip(found, answers_of(load, alone, monkeypatch), strict=True):
        assert (one == other).all()
    assert capfd.readouterr() == ("", "")


SLOW = """
import sys, time
from functools import partial
from pathlib import Path
import torch
from exporter.parity.truth.ahead import answered_ahead
from exporter.parity.truth.cache import Cache
if __name__ == "__main__":
    with answered_ahead(None, partial(time.sleep, 300), {}, (2,), "mean", (), Cache(Path("x"))):
        print("started", flush=True)
        time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks for processes in /proc")
def test_it_ends_with_who_asked(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, str(tmp_path / "slow.py")]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(3)  # it begins
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    assert started
    gone, alive = psutil.wait_procs(started, timeout=60)
    assert not alive


def test_a_small_model_is_not_worth_a_process(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tiny = load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))
    assert not is_worth_it(tiny, PACKS, (2,), Cache(tmp_path))


@pytest.mark.parametrize(
    ("threads", "memory", "cache_bytes", "worth"),
    [
        (2, None, 10**6, True),
        (1, None, 10**6, False),
        (2, 10**8, 10**6, False),
        (2, None, 10**4, False),
    ],
)
def test_a_process_needs_a_core_memory_and_a_place_for_its_answers(
    reference: Reference, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    threads: int, memory: int | None, cache_bytes: int, worth: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr("exporter.parity.truth.ahead.default_threads", lambda: threads)
    monkeypatch.setattr("exporter.parity.truth.ahead.usable_memory", lambda: memory)
    assert is_worth_it(reference, PACKS, (6,), Cache(tmp_path, cache_bytes)) is worth
    assert not is_worth_it(reference, PACKS, (6,), Cache(Path(os.devnull) / "x"))
