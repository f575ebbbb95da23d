import numpy as np
import pytest
import torch

from exporter.model.reference import Reference
from runtime.errors import InputError
from runtime.packing import PackedBatch
from runtime.pooling import pool, residue_rows

BOUNDS = np.array([0, 4, 5, 7], dtype=np.int32)
X = np.arange(14, dtype=np.float32).reshape(7, 2)


def test_mean_takes_residues_only() -> None:
    pooled = pool(X, BOUNDS, "mean")
    np.testing.assert_array_equal(pooled[0], X[1:3].mean(axis=0))
    np.testing.assert_array_equal(pooled[1], X[4], "a single token is taken as it is")
    assert np.isnan(pooled[2]).all(), "BOS and EOS alone hold no residue"
    assert pooled.dtype == np.float32


def test_mean_with_eos_skips_bos_alone() -> None:
    pooled = pool(X, BOUNDS, "mean-with-eos")
    np.testing.assert_array_equal(pooled[0], X[1:4].mean(axis=0))
    np.testing.assert_array_equal(pooled[1:], X[[4, 6]])


def test_cls() -> None:
    np.testing.assert_array_equal(pool(X, BOUNDS, "cls"), X[[0, 4, 5]])


def test_none_has_no_vector_per_protein() -> None:
    with pytest.raises(InputError, match="got 'none'"):
        pool(X, BOUNDS, "none")


def test_residue_rows() -> None:
    assert [residue_rows(0, 4), residue_rows(4, 5), residue_rows(5, 7)] == [
        slice(1, 3), slice(4, 5), slice(6, 6),
    ]  # fmt: skip


def test_mean_equals_fair_esms_extract_script(reference: Reference) -> None:
    sequence = "MKTAYIAKQRQISFVKSHFSRQ"
    _, _, tokens = reference.alphabet.get_batch_converter()([("a", sequence)])
    with torch.no_grad():
        values = reference.model(tokens, repr_layers=[2])["representations"][2]
    # fair-esm scripts/extract.py:123
    expected = values[0, 1 : len(sequence) + 1].mean(0)
    batch = PackedBatch.from_sequences([sequence])
    actual = pool(values[0].numpy(), batch.cu_seqlens, "mean")
    np.testing.assert_allclose(actual[0], expected, rtol=1e-5, atol=1e-6)
