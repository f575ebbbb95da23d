import numpy as np
import pytest

from runtime.errors import InputError
from runtime.packing import PackedBatch


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
    ("arguments", "message"),
    [
        (("MKT",), "sequences must be a list of proteins, got one string"),
        ((["MK", "GG"], ["a"]), r"names must be a list of 2, one for each sequence, got \['a'\]"),
        ((["MK", "GG"], "ab"), "names must be a list of 2, one for each sequence, got 'ab'"),
        ((["MK"], ["a"], "X"), "unknown must be one of error, x, unk, got 'X'"),
        ((["MK", "M1"], ["a", "b"]), "record 'b': character '1' at position 2"),
    ],
)
def test_from_sequences_does_not_guess(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PackedBatch.from_sequences(*arguments)


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
