"""Threads that want to run, counted while real engines embed; more than there are cores."""

from pathlib import Path

import pytest

from benchmarks.threads import MANY_PROTEINS, Load, sample, typical_peak
from runtime.concurrency import choose_packing

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="needs Linux's states of threads"
)

EMBED_DIM = 320
# Small, so that each of 64 packs gets its turn soon on a machine of few cores.
MAX_TOKENS = 512
SECONDS = 1.5
ONE_PROTEIN = Load("one protein alone", 1, 400)


def runnable(
    artifact: Path,
    engine: str,
    threads: int,
    concurrency: int,
    load: Load,
    seconds: float = SECONDS,
) -> list[int]:
    return sample(artifact, engine, threads, concurrency, MAX_TOKENS, load, seconds)


@pytest.mark.parametrize("threads", [1, 3, 16, 64])
def test_one_protein_alone_gets_all(artifact: Path, threads: int) -> None:
    concurrency = choose_packing(threads, 4096, EMBED_DIM, ONE_PROTEIN.stream, None).concurrency
    assert concurrency == 1
    check(runnable(artifact, "onnx", threads, concurrency, ONE_PROTEIN), threads)


@pytest.mark.parametrize("threads", [1, 3, 16, 64])
def test_many_proteins_get_all(artifact: Path, threads: int) -> None:
    concurrency = choose_packing(threads, 4096, EMBED_DIM, MANY_PROTEINS.stream, None).concurrency
    assert concurrency == threads
    # On 2 cores 64 threads take a while to start.
    seconds = 8 if threads == 64 else SECONDS
    check(runnable(artifact, "onnx", threads, concurrency, MANY_PROTEINS, seconds), threads)


def test_packs_that_share_a_pool_get_all(artifact: Path) -> None:
    """4 packs on 16 cores had a pool of 4 for all of them: 7 threads ran."""
    check(runnable(artifact, "onnx", 16, 4, MANY_PROTEINS), 16)


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_pytorch_gets_all(artifact: Path, threads: int) -> None:
    """Its idle threads sleep between operators where there are more of them than cores."""
    load = Load("one long protein alone", 1, 1500)
    samples = runnable(artifact, "torchscript", threads, 1, load)
    # As in ``check``: a sample beside other work of the machine saw 15 of 16.
    assert 0.85 * threads <= max(samples)
    assert typical_peak(samples) <= threads + 1


def check(samples: list[int], threads: int) -> None:
    """One more may run: the thread that reads, tokenizes and packs, or the one that collects."""
    peak = typical_peak(samples)
    assert 0.85 * threads <= peak <= threads + 1, (peak, samples)
