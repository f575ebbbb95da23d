"""Long proteins in windows: which, and what they come to."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import runtime
from runtime.readers.records import RecordOptions, prepare
from runtime.runner import AsyncInferenceRunner, Record
from runtime.sliding import OVERLAP, joined, starts_of, windows_of
from tests.conftest import random_sequence

WINDOW = 16
LENGTHS = (3, 40, 16, 17, 120, 40)
RECORDS = [
    Record(f"p{i}", random_sequence(np.random.default_rng(length), length))
    for i, length in enumerate(LENGTHS)
]


@pytest.fixture(scope="module")
def engine(artifact: Path) -> runtime.Engine:
    with runtime.load(artifact, "onnx") as engine:
        yield engine


@given(st.integers(1, 300), st.integers(1, 2000))
def test_windows_cover_all_and_overlap(window: int, more: int) -> None:
    length = window + more
    starts = starts_of(length, window)
    assert starts[0] == 0
    assert starts[-1] == length - window
    for before, after in pairwise(starts):
        shared = before + window - after
        assert before < after
        assert shared >= OVERLAP * window or after == before + 1


@given(st.integers(1, 20), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_rows_are_averaged_over_the_windows_that_hold_them(
    window: int, more: int, seed: int
) -> None:
    length = window + more
    starts = starts_of(length, window)
    values = np.random.default_rng(seed).normal(size=(len(starts), window, 3)).astype(np.float32)
    found = joined(list(values), length, "none")
    for residue in range(length):
        held = [values[i][residue - s] for i, s in enumerate(starts) if s <= residue < s + window]
        np.testing.assert_allclose(found[residue], np.mean(held, axis=0), rtol=1e-6, atol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("pool", ["mean", "mean-with-eos", "cls", "none"])
@pytest.mark.parametrize("max_tokens", [20, 64, 4096])
def test_a_protein_is_what_its_windows_come_to(
    engine: runtime.Engine, pool: str, max_tokens: int
) -> None:
    runner = AsyncInferenceRunner(engine, max_tokens, pool, max_length=WINDOW, long="window")
    found = list(runner.run(iter(RECORDS)))
    assert [each.id for each in found] == [record.id for record in RECORDS]
    assert [each.num_tokens - 2 for each in found] == list(LENGTHS)
    totals = runner.totals
    assert (totals.proteins, totals.in_windows) == (6, 4)
    for record, each in zip(RECORDS, found, strict=True):
        pieces = prepare(record, RecordOptions(max_length=WINDOW, long="window")).runs
        alone = [
            engine.embed(runtime.PackedBatch.from_tokens([piece]), 2, pool) for piece in pieces
        ]
        vectors = [rows[1:-1] if pool == "none" else rows[0] for rows in alone]
        length = len(record.sequence)
        expected = joined(vectors, length, pool) if len(pieces) > 1 else vectors[0]
        np.testing.assert_allclose(each.values, expected, rtol=1e-4, atol=2e-5)
    assert np.array_equal(found[1].values, found[5].values)


def test_windows_have_bos_and_eos_of_their_own() -> None:
    tokens = np.array([0, *range(10, 20), 2])
    assert [window.tolist() for window in windows_of(tokens, 8)] == [
        [0, 10, 11, 12, 13, 14, 15, 16, 17, 2],
        [0, 12, 13, 14, 15, 16, 17, 18, 19, 2],
    ]
