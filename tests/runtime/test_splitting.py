"""Packs larger than an engine takes: split, run in parts, and put together again."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runtime
from runtime import manifest as manifests
from runtime.engines.splitting import InParts, holding, split
from runtime.errors import UnsupportedError
from runtime.manifest_schema import Profile
from runtime.packing import PackedBatch
from tests.conftest import random_sequence

PROFILES = [Profile(200, 20, 16), Profile(200, 6, 64), Profile(200, 2, 150)]


def pack(lengths: list[int]) -> PackedBatch:
    """Of proteins of that many tokens, BOS and EOS included."""
    random = np.random.default_rng(5)
    names = [f"p{place}" for place in range(len(lengths))]
    return PackedBatch.from_sequences([random_sequence(random, n - 2) for n in lengths], names)


class TestSplit:
    @settings(deadline=None, max_examples=100, derandomize=True, database=None)
    @given(lengths=st.lists(st.integers(3, 150), min_size=1, max_size=60))
    def test_every_protein_once_in_parts_that_a_profile_holds(self, lengths: list[int]) -> None:
        batch = pack(lengths)
        parts = split(batch, PROFILES)
        assert sorted(np.concatenate([part.proteins for part in parts])) == list(
            range(len(lengths))
        )
        assert sorted(np.concatenate([part.rows for part in parts])) == list(
            range(batch.num_tokens)
        )
        for part in parts:
            assert holding(PROFILES, part.batch) is not None
            assert np.array_equal(part.batch.input_ids, batch.input_ids[part.rows])
            assert part.batch.names == tuple(f"p{place}" for place in part.proteins)

    def test_a_pack_that_fits_is_taken_whole(self) -> None:
        batch = pack([60, 5, 61])
        (part,) = split(batch, PROFILES)
        assert part.batch is batch

    def test_one_long_protein_does_not_pad_many_short_ones(self) -> None:
        parts = split(pack([10, 150, 10, 10]), PROFILES)
        assert [part.proteins.tolist() for part in parts] == [[0, 2, 3], [1]]

    def test_no_more_parts_than_tokens_or_proteins_ask_for(self) -> None:
        assert len(split(pack([10] * 40), PROFILES)) == 2
        assert len(split(pack([100] * 8), PROFILES)) == 4


class TestInParts:
    @pytest.mark.parametrize("name", ["onnx", "torchscript"])
    def test_equal_results(self, tiny_artifact: Path, name: str) -> None:
        batch = pack([30, 150, 4, 90, 90, 17, 64, 3, 120, 33])
        signature = manifests.read(tiny_artifact).signature
        with runtime.load(tiny_artifact, name) as whole:
            expected = whole.run(batch)
            with InParts(whole, PROFILES, signature) as in_parts:
                assert len(split(batch, PROFILES)) > 3
                got = in_parts.run(batch)
                assert got.tensors.keys() == expected.tensors.keys()
                for tensor, array in expected.tensors.items():
                    error = np.linalg.norm(got.tensors[tensor] - array) / np.linalg.norm(array)
                    assert error < 2e-6, tensor
                for how in ("mean", "cls", "none"):
                    one, other = in_parts.embed(batch, 1, how), whole.embed(batch, 1, how)
                    assert np.linalg.norm(one - other) / np.linalg.norm(other) < 2e-6
                for name in expected.tensors:
                    (one,) = in_parts.run(batch, [name]).tensors.values()
                    np.testing.assert_allclose(one, expected.tensors[name], rtol=1e-4, atol=1e-5)

    def test_a_protein_that_no_profile_holds(self, tiny_artifact: Path) -> None:
        batch = pack([30, 151])
        signature = manifests.read(tiny_artifact).signature
        with InParts(runtime.load(tiny_artifact, "onnx"), PROFILES, signature) as engine:
            message = "p1 has 151 tokens, engine 'onnx' of this artifact takes up to 150. Build it"
            assert engine.unsupported_reasons(batch)[0].startswith(message)
            assert engine.unsupported_reasons(pack([30, 150])) == []
            with pytest.raises(UnsupportedError, match="p1 has 151 tokens"):
                engine.run(batch)
