"""Pooling of tensors equals pooling of arrays."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines.torch.pooling import pool_tensor
from runtime.errors import InputError
from runtime.pooling import Pool, pool

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=20)


@pytest.mark.parametrize("how", ["mean", "mean-with-eos", "cls"])
@given(lengths=LENGTHS)
def test_equals_pooling_of_arrays(how: Pool, lengths: list[int]) -> None:
    cu_seqlens = np.cumsum([0, *lengths]).astype(np.int32)
    rows = np.random.default_rng(0).standard_normal((cu_seqlens[-1], 6)).astype(np.float32)
    pooled = pool_tensor(torch.from_numpy(rows), torch.from_numpy(cu_seqlens), how)
    np.testing.assert_allclose(pooled, pool(rows, cu_seqlens, how), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("how", ["mean", "mean-with-eos"])
def test_means_of_bfloat16_are_not_rounded_to_it(how: Pool) -> None:
    cu_seqlens = np.array([0, 40, 41, 90], np.int32)
    rows = torch.randn(90, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    pooled = pool_tensor(rows, torch.from_numpy(cu_seqlens), how)
    assert pooled.dtype == torch.float32
    expected = pool(rows.float().numpy(), cu_seqlens, how)
    np.testing.assert_allclose(pooled, expected, rtol=1e-6, atol=1e-7)


def test_a_wrong_pooling_is_no_guess() -> None:
    for how in ("none", "max"):
        with pytest.raises(InputError, match=f"pool must be mean, .*, got '{how}'"):
            pool_tensor(torch.ones(3, 2), torch.tensor([0, 3], dtype=torch.int32), how)


@pytest.mark.parametrize("how", ["mean", "mean-with-eos"])
def test_nan_stays_in_its_protein(how: Pool) -> None:
    cu_seqlens = np.array([0, 4, 9, 13], np.int32)
    rows = np.ones((13, 2), np.float32)
    rows[6] = np.nan  # a residue of the second protein
    rows[0] = np.inf  # BOS of the first
    pooled = pool_tensor(torch.from_numpy(rows), torch.from_numpy(cu_seqlens), how).numpy()
    assert np.isnan(pooled[1]).all()
    np.testing.assert_array_equal(pooled[[0, 2]], 1)
