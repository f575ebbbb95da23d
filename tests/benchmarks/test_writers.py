"""Writing takes the same memory however much is written."""

import pytest

from benchmarks.writers import ENDINGS, measure

# What an allocator keeps or gives back from one run to the next.
NOISE_MB = 40


@pytest.mark.parametrize("ending", ENDINGS)
def test_memory_is_flat(ending: str) -> None:
    small, large = (measure(ending, "writer", tokens, 1280) for tokens in (15_000, 60_000))
    assert large["size_mb"] - small["size_mb"] > 5 * NOISE_MB
    assert large["peak_mb"] - small["peak_mb"] < NOISE_MB


def test_the_runner_is_measured_too() -> None:
    row = measure(".npz", "runner", 20_000, 320)
    assert row["size_mb"] > 20
    assert row["peak_mb"] > 0
