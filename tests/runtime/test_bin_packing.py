import itertools
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.bin_packing import Lengths, even_packs, first_fit_decreasing
from runtime.errors import InputError

Packer = Callable[[Lengths, int], list[list[int]]]
PACKERS = (even_packs, first_fit_decreasing)
LENGTHS = st.lists(st.integers(1, 300), max_size=60)
# How many, the longest, and a seed.
MANY = st.tuples(st.integers(1, 400), st.integers(1, 300), st.integers(0, 2**32 - 1))


def mixed(count: int, seed: int = 20) -> np.ndarray:
    random = np.random.default_rng(seed)
    residues = np.exp(random.normal(np.log(280), 0.6, count)).clip(20, 1022)
    return residues.astype(np.int64) + 2


def work_of(lengths: Lengths, packs: list[list[int]]) -> np.ndarray:
    return np.array([sum(int(lengths[i]) ** 2 for i in pack) for pack in packs], dtype=float)


def spread(work: np.ndarray) -> float:
    return float(work.std() / work.mean())


def efficiency(lengths: np.ndarray, packs: list[list[int]], max_tokens: int) -> float:
    return float(lengths.sum() / (len(packs) * max_tokens))


def plain_first_fit_decreasing(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """As the textbook has it: each protein looks at every pack."""
    packs: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((p for p, free in enumerate(room) if lengths[index] <= free), len(packs))
        if place == len(packs):
            packs.append([])
            room.append(max_tokens)
        packs[place].append(index)
        room[place] -= lengths[index]
    return packs


@pytest.mark.parametrize("packer", PACKERS)
@settings(deadline=None)
@given(lengths=LENGTHS, max_tokens=st.integers(1, 400))
def test_every_protein_is_in_one_pack_that_fits(
    packer: Packer, lengths: list[int], max_tokens: int
) -> None:
    packs = packer(lengths, max_tokens)
    assert sorted(i for members in packs for i in members) == list(range(len(lengths)))
    for members in packs:
        total = sum(lengths[i] for i in members)
        assert members
        assert total <= max_tokens or len(members) == 1
        assert all(lengths[a] >= lengths[b] for a, b in itertools.pairwise(members))


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 900))
def test_the_same_packs_as_plain_first_fit(lengths: list[int], max_tokens: int) -> None:
    assert first_fit_decreasing(lengths, max_tokens) == plain_first_fit_decreasing(
        lengths, max_tokens
    )


@settings(deadline=None)
@given(MANY, st.integers(1, 900))
def test_never_heavier_and_hardly_more_packs_than_first_fit(
    drawn: tuple[int, int, int], max_tokens: int
) -> None:
    count, longest, seed = drawn
    lengths = np.random.default_rng(seed).integers(1, longest + 1, count).tolist()
    even, plain = even_packs(lengths, max_tokens), first_fit_decreasing(lengths, max_tokens)
    assert len(even) <= 1.03 * len(plain)
    work = work_of(lengths, even)
    assert work.max() <= work_of(lengths, plain).max()
    assert (np.diff(work) <= 0).all(), "most work first"
    assert even == even_packs(np.array(lengths), max_tokens), "the same every time"


@settings(deadline=None)
@given(st.integers(150, 3000), st.integers(0, 2**32 - 1))
def test_mixed_proteins_make_even_packs(count: int, seed: int) -> None:
    lengths = mixed(count, seed)
    even, plain = even_packs(lengths, 4096), first_fit_decreasing(lengths, 4096)
    assert len(even) <= 1.03 * len(plain)
    # Where the tokens leave next to no room in the packs there is nothing to choose.
    if efficiency(lengths, plain, 4096) < 0.98:
        assert spread(work_of(lengths, even)) < 0.25 * spread(work_of(lengths, plain))


def test_a_million_proteins_are_packed_well_and_soon() -> None:
    """Packing that compares every protein with every pack would take hours."""
    lengths = mixed(1_000_000)
    started = time.process_time()
    packs = even_packs(lengths, 4096)
    assert time.process_time() - started < 6
    members = np.fromiter(itertools.chain.from_iterable(packs), np.int64, len(lengths))
    assert (np.bincount(members, minlength=len(lengths)) == 1).all()
    starts = np.concatenate(([0], np.cumsum([len(pack) for pack in packs])[:-1]))
    tokens = np.add.reduceat(lengths[members], starts)
    work = np.add.reduceat(lengths[members].astype(float) ** 2, starts)
    assert tokens.max() <= 4096
    assert efficiency(lengths, packs, 4096) >= 0.97
    assert spread(work) < 0.05
    assert work.max() < 1.1 * work.mean()


def test_one_long_protein_among_short_ones() -> None:
    packs = even_packs([30] * 50 + [1000] + [30] * 50, 4096)
    assert packs == [[50, *range(50), *range(51, 101)]]


def test_the_long_are_shared_out() -> None:
    lengths = [8, 8, 2, 2, 2, 2, 2, 2]
    assert first_fit_decreasing(lengths, 16) == [[0, 1], [2, 3, 4, 5, 6, 7]]
    assert [[lengths[i] for i in pack] for pack in even_packs(lengths, 16)] == [[8, 2, 2, 2]] * 2


def test_longer_than_the_budget_is_alone_and_first() -> None:
    assert even_packs([3, 20, 4, 30, 3], 10) == [[3], [1], [2, 0, 4]]
    assert even_packs([20, 30], 10) == [[1], [0]]


def test_where_nothing_is_even_first_fit_remains() -> None:
    """Dealt, 5 and 5 would stand apart and one 3 would find no room."""
    assert even_packs([5, 5, 3, 3, 3], 10) == [[0, 1], [2, 3, 4]]


@pytest.mark.parametrize("packer", PACKERS)
def test_nothing_to_pack(packer: Packer) -> None:
    assert packer([], 10) == []


def test_known_answer() -> None:
    assert first_fit_decreasing([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 3, 2, 5]]


@pytest.mark.parametrize("packer", PACKERS)
def test_what_cannot_be_packed(packer: Packer) -> None:
    with pytest.raises(InputError, match="max_tokens must be at least 1, got 0"):
        packer([1], 0)
    with pytest.raises(InputError, match=r"at least 1, got lengths\[1\] = 0"):
        packer([1, 0], 5)
