import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import InputError
from runtime.packing import PackedBatch, first_fit_decreasing

LENGTHS = st.lists(st.integers(1, 300), max_size=60)


def pack(ids: list[int], bounds: list[int], longest: int, **options: object) -> PackedBatch:
    return PackedBatch(
        np.array(ids, dtype=np.int64), np.array(bounds, dtype=np.int32), longest, **options
    )


def test_from_sequences() -> None:
    batch = PackedBatch.from_sequences(["M", "KT"], ["a", "b"])
    assert batch.input_ids.tolist() == [0, 20, 2, 0, 15, 11, 2]
    assert batch.cu_seqlens.tolist() == [0, 3, 7]
    assert (batch.max_seqlen, batch.num_tokens, batch.num_proteins) == (4, 7, 2)
    assert batch.name(1) == "b"
    assert batch.input_ids.dtype == np.int64
    assert batch.cu_seqlens.dtype == np.int32


@pytest.mark.parametrize(
    ("ids", "bounds", "longest", "message"),
    [
        ([0, 5, 2], [0, 2], 2, r"from 0 to T = 3, got 0\.\.2"),
        ([0, 5, 2], [1, 3], 2, r"from 0 to T = 3, got 1\.\.3"),
        ([0, 5, 2], [0, 2, 2, 3], 2, r"cu_seqlens\[1\] = 2, cu_seqlens\[2\] = 2"),
        ([0, 5, 2], [0, 3], 5, "max_seqlen must be the longest protein's 3 tokens, got 5"),
        ([0, 1, 2], [0, 3], 3, r"input_ids\[1\] = 1: .* no padding"),
        ([0, 33, 2], [0, 3], 3, r"input_ids\[1\] = 33"),
        ([0, -1, 2], [0, 3], 3, r"input_ids\[1\] = -1"),
        ([], [0], 0, r"N >= 1, got int32 \[1\]"),
    ],
)
def test_invalid_packs_name_the_place(
    ids: list[int], bounds: list[int], longest: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        pack(ids, bounds, longest)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(InputError) as error:
        pack([0, 1, 2], [0, 3], 9, names=("a", "b"))
    text = str(error.value)
    assert "max_seqlen" in text
    assert "padding" in text
    assert "got 2 names for 1 proteins" in text


def test_wrong_dtypes() -> None:
    with pytest.raises(InputError, match=r"input_ids must be int64 \[T\], got int32 \[3\]"):
        PackedBatch(np.array([0, 5, 2], dtype=np.int32), np.array([0, 3], dtype=np.int32), 3)


def test_no_proteins() -> None:
    with pytest.raises(InputError, match="at least one protein"):
        PackedBatch.from_tokens([])


@given(LENGTHS, st.integers(1, 400))
def test_every_protein_is_in_one_pack_that_fits(lengths: list[int], max_tokens: int) -> None:
    packs = first_fit_decreasing(lengths, max_tokens)
    assert sorted(i for members in packs for i in members) == list(range(len(lengths)))
    for members in packs:
        total = sum(lengths[i] for i in members)
        assert total <= max_tokens or len(members) == 1


@given(LENGTHS, st.integers(300, 900))
def test_no_two_packs_could_be_one(lengths: list[int], max_tokens: int) -> None:
    totals = [sum(lengths[i] for i in p) for p in first_fit_decreasing(lengths, max_tokens)]
    assert all(a + b > max_tokens for i, a in enumerate(totals) for b in totals[i + 1 :]), (
        "first fit never leaves two packs that fit into one"
    )


def test_known_answer() -> None:
    assert first_fit_decreasing([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 3, 2, 5]]


def test_no_budget() -> None:
    with pytest.raises(InputError, match="at least 1, got 0"):
        first_fit_decreasing([1], 0)
