"""Packs that are filled up to a bucket. Capture and replay need a card."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import runtime
from runtime import manifest as manifests
from runtime.engines.torch.cuda_graphs import (
    Bucket,
    Forward,
    GraphedForward,
    bucket_of,
    fill,
    filling_bounds,
)
from runtime.engines.torch.engine import TorchEngine
from runtime.errors import UnsupportedError
from runtime.packing import PackedBatch
from tests.conftest import random_sequence

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=40)


@given(lengths=LENGTHS)
def test_a_bucket_holds_its_packs(lengths: list[int]) -> None:
    tokens, proteins, longest = sum(lengths), len(lengths), max(lengths)
    bucket = bucket_of(tokens, proteins, longest)
    assert tokens <= bucket.num_tokens <= max(16, 1.5 * tokens)
    assert longest <= bucket.max_seqlen <= max(16, 1.5 * longest)
    bounds = filling_bounds(tokens, proteins, bucket)
    assert len(bounds) == bucket.num_proteins - proteins
    ends = np.array([tokens, *bounds])
    assert ends[-1] == bucket.num_tokens
    assert (np.diff(ends) >= 0).all()
    assert np.diff(ends).max(initial=0) <= bucket.max_seqlen
    # Empty proteins stand last: the forward takes a token's protein from the bounds before it.
    empty = np.diff(ends) == 0
    assert not (np.diff(empty.astype(int)) < 0).any()


@given(tokens=st.integers(1, 4096))
def test_there_are_few_buckets(tokens: int) -> None:
    sizes = {16, *(2**k for k in range(5, 13)), *(3 * 2**k for k in range(3, 11))}
    assert bucket_of(tokens, 1, 16).num_tokens in sizes


def test_an_example() -> None:
    bucket = bucket_of(num_tokens=10, num_proteins=2, max_seqlen=7)
    assert bucket == Bucket(16, 16, 16)
    assert filling_bounds(10, 2, bucket).tolist() == [16] * 14


@pytest.mark.parametrize("lengths", [[1], [8, 3], [30, 30, 30, 5, 5], [200, 17], [3] * 60])
def test_a_filled_pack_computes_the_same(tiny_artifact: Path, lengths: list[int]) -> None:
    random = np.random.default_rng(3)
    batch = PackedBatch.from_sequences([random_sequence(random, n) for n in lengths])
    # The reference's attention, for the kernels for CPUs refuse empty proteins.
    with runtime.load(tiny_artifact, "torchscript", "cpu", attention="standard") as engine:
        assert isinstance(engine, TorchEngine)
        inputs = engine.inputs(batch)
        bucket = bucket_of(batch.num_tokens, batch.num_proteins, batch.max_seqlen)
        filled = fill(inputs, bucket)
        assert [len(x) for x in filled[:2]] == [bucket.num_tokens, bucket.num_proteins + 1]
        expected = dict(zip(engine.output_names, engine.forward(inputs), strict=True))
        for name, rows in zip(engine.output_names, engine.forward(filled), strict=True):
            own = rows[: len(expected[name])]
            torch.testing.assert_close(own, expected[name], atol=2e-5, rtol=1e-5)


class Uncaptured:
    """Runs what a graph would replay."""

    def __init__(self, forward: Forward, inputs: list[Tensor], shared: object):
        self._forward = forward

    def replay(self, inputs: list[Tensor]) -> list[Tensor]:
        return list(self._forward(inputs))


def test_what_was_filled_up_is_cut_off(
    tiny_artifact: Path, batch: PackedBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.engines.torch.cuda_graphs._Captured", Uncaptured)
    monkeypatch.setattr("runtime.engines.torch.cuda_graphs._Shared", object)
    rows = [output.rows for output in manifests.read(tiny_artifact).signature.outputs]
    with runtime.load(tiny_artifact, "torchscript", "cpu", attention="standard") as engine:
        assert isinstance(engine, TorchEngine)
        expected = list(engine.forward(engine.inputs(batch)))
        graphed = GraphedForward(engine.forward, rows)
        for one, other in zip(graphed(engine.inputs(batch)), expected, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_a_cpu_refuses_them(tiny_artifact: Path) -> None:
    for engine in ("torchscript", "onnx"):
        with pytest.raises(UnsupportedError, match=f"{engine!r} of .* with CUDA graphs: "):
            runtime.load(tiny_artifact, engine, device="cpu", cuda_graphs=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_replayed_packs_equal_plain_ones(tiny_artifact: Path) -> None:
    random = np.random.default_rng(4)
    with (
        runtime.load(tiny_artifact, "torchscript", "cuda") as plain,
        runtime.load(tiny_artifact, "torchscript", "cuda", cuda_graphs=True) as graphed,
    ):
        for lengths in ([5], [40, 3], [40, 9], [5000], [200, 17], [199, 17]):
            batch = PackedBatch.from_sequences([random_sequence(random, n) for n in lengths])
            expected = plain.run(batch).tensors
            for name, rows in graphed.run(batch).tensors.items():
                np.testing.assert_allclose(rows, expected[name], atol=2e-5, rtol=1e-5)
