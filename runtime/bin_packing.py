"""Which proteins go into one pack: full packs, with even work for attention.

Tokens of a pack are bounded, and attention's work grows with the sum of squared lengths. First-fit
decreasing fills packs best and puts all long proteins into the first of them; ``even_packs`` takes
hardly more packs and gives each its share of long and short ones.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError

Lengths = Sequence[int] | NDArray[np.integer]

# Packs that even work may cost, as shares of first-fit decreasing's; the least that works is taken.
PACKS_ALLOWED = (1.0, 1.01, 1.02, 1.03)
# How much even tokens count against even work when a protein is dealt. Tried in turn: the first
# gives the most even work, the second leaves room in every pack for the last proteins.
TOKEN_WEIGHTS = (0.1, 1.0)
# Proteins dealt before packs are compared again, as a share of the packs. 1/4, 1/8 and 1/16 give
# the same spread of work.
ROUNDS = 8


@dataclass(frozen=True)
class _Pattern:
    """``times`` packs that hold ``takes[i]`` proteins of ``lengths[i]`` tokens each."""

    lengths: list[int]
    takes: list[int]
    times: int

    @property
    def work(self) -> int:
        return sum(take * length**2 for length, take in zip(self.lengths, self.takes, strict=True))


def even_packs(lengths: Lengths, max_tokens: int) -> list[list[int]]:
    """Groups proteins into packs of at most ``max_tokens`` whose attention work is even.

    At most 3 % more packs than ``first_fit_decreasing`` makes, and the heaviest pack is never
    heavier than its heaviest. A protein longer than ``max_tokens`` gets a pack of its own. Where
    proteins are so long that no even packs are found, the packs are those of
    ``first_fit_decreasing``. The result is the same on every machine.

    Proteins are dealt longest first. Each goes where it adds least to the sum over packs of
    ``work^2 + weight * tokens^2``: long ones find a pack with little work, short ones one with few
    tokens. This is worst-fit decreasing with two loads, of which one has a limit.

    Args:
        lengths: tokens of each protein, ``[N]``.
        max_tokens: budget of a pack.

    Returns:
        For each pack the indices into ``lengths``, longest protein first; together a permutation
        of them. Packs with the most work (the sum of squared lengths) come first.

    Raises:
        InputError: ``max_tokens`` or a length below 1.
    """
    tokens = _checked(lengths, max_tokens)
    order = np.argsort(-tokens, kind="stable")
    alone = int((tokens > max_tokens).sum())
    packs = [[index] for index in order[:alone].tolist()]
    order = order[alone:]
    if not len(order):
        return packs
    longest_first = tokens[order]
    patterns = _first_fit_patterns(longest_first, max_tokens)
    fewest = sum(pattern.times for pattern in patterns)
    heaviest = max(pattern.work for pattern in patterns)
    for num_packs in sorted({int(share * fewest) for share in PACKS_ALLOWED}):
        for weight in TOKEN_WEIGHTS:
            dealt = _deal(longest_first, num_packs, max_tokens, weight)
            if dealt is not None and dealt[1].max() <= heaviest:
                return packs + _members(order, *dealt)
    patterns.sort(key=lambda pattern: -pattern.work)
    return packs + _packs_of(patterns, order, longest_first)


def first_fit_decreasing(lengths: Lengths, max_tokens: int) -> list[list[int]]:
    """Groups proteins into few packs of at most ``max_tokens``, longest first.

    A protein longer than ``max_tokens`` gets a pack of its own. Equal lengths keep their order, so
    the result is the same on every machine.

    Source: Johnson, "Near-optimal bin packing algorithms" (1973): at most 11/9 of the optimum.
    Filling pack after pack, each with the longest that still fit, gives the same packs; equal ones
    are made at once, so the time hardly grows with the number of proteins.

    Args:
        lengths: tokens of each protein, ``[N]``.
        max_tokens: budget of a pack.

    Returns:
        For each pack the indices into ``lengths``, together a permutation of them.

    Raises:
        InputError: ``max_tokens`` or a length below 1.
    """
    tokens = _checked(lengths, max_tokens)
    order = np.argsort(-tokens, kind="stable")
    return _packs_of(_first_fit_patterns(tokens, max_tokens), order, tokens[order])


def _checked(lengths: Lengths, max_tokens: int) -> NDArray[np.int64]:
    if max_tokens < 1:
        raise InputError(f"max_tokens must be at least 1, got {max_tokens}")
    tokens = np.asarray(lengths, dtype=np.int64)
    if (tokens < 1).any():
        place = int(np.argmax(tokens < 1))
        raise InputError(f"lengths must be at least 1, got lengths[{place}] = {tokens[place]}")
    return tokens


def _first_fit_patterns(tokens: NDArray[np.int64], max_tokens: int) -> list[_Pattern]:
    distinct, counts = (values.tolist() for values in np.unique(tokens, return_counts=True))
    patterns = []
    while distinct:
        room, place = max_tokens, len(distinct) - 1
        places, takes = [], []
        while place >= 0:
            # A protein beyond the budget finds an empty pack, and no other protein joins it.
            fitting = max(room // distinct[place], 1)
            takes.append(min(counts[place], fitting))
            places.append(place)
            room -= takes[-1] * distinct[place]
            place = bisect_right(distinct, room, 0, place) - 1
        times = min(counts[p] // take for p, take in zip(places, takes, strict=True))
        patterns.append(_Pattern([distinct[p] for p in places], takes, times))
        # From the longest down, so that deleting one does not move the next.
        for p, take in zip(places, takes, strict=True):
            counts[p] -= take * times
            if not counts[p]:
                del distinct[p], counts[p]
    return patterns


def _packs_of(
    patterns: Sequence[_Pattern], order: NDArray[np.int64], longest_first: NDArray[np.int64]
) -> list[list[int]]:
    """The packs of the patterns; equal lengths are handed out in the order they came."""
    distinct, first = np.unique(-longest_first, return_index=True)
    next_of = dict(zip((-distinct).tolist(), first.tolist(), strict=True))
    packs: list[list[int]] = []
    for pattern in patterns:
        columns = []
        for length, take in zip(pattern.lengths, pattern.takes, strict=True):
            start = next_of[length]
            next_of[length] = end = start + take * pattern.times
            columns.append(order[start:end].reshape(pattern.times, take))
        packs += np.hstack(columns).tolist()
    return packs


def _deal(
    longest_first: NDArray[np.int64], num_packs: int, max_tokens: int, token_weight: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """The pack of each protein and the work of each pack, or None if a protein does not fit.

    Proteins go out ``num_packs / ROUNDS`` at a time, each to another pack, so that NumPy does the
    work.
    """
    lengths = longest_first.astype(np.float64)
    work, tokens = np.zeros(num_packs), np.zeros(num_packs)
    pack_of = np.empty(len(lengths), dtype=np.int64)
    # Work over tokens: makes the two loads comparable, whatever the lengths.
    scale = token_weight * ((lengths**2).sum() / lengths.sum()) ** 2
    step = max(1, num_packs // ROUNDS)
    for start in range(0, len(lengths), step):
        dealt = lengths[start : start + step]
        # From the derivative of the sum of squares by one protein's length, over that length.
        load = dealt[0] * work + scale * tokens
        load[tokens + dealt[0] > max_tokens] = np.inf
        chosen = _least(load, len(dealt))
        if np.isinf(load[chosen[-1]]):
            return None
        pack_of[start : start + step] = chosen
        work[chosen] += dealt**2
        tokens[chosen] += dealt
    return pack_of, work


def _least(load: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Indices of the ``count`` least, in order; the first of equals, as argpartition is not."""
    limit = np.partition(load, count - 1)[count - 1]
    below = np.flatnonzero(load < limit)
    equal = np.flatnonzero(load == limit)[: count - len(below)]
    chosen = np.concatenate((below, equal))
    return chosen[np.argsort(load[chosen], kind="stable")]


def _members(
    order: NDArray[np.int64], pack_of: NDArray[np.int64], work: NDArray[np.float64]
) -> list[list[int]]:
    """The packs, most work first; a pack that was dealt nothing is left out."""
    heaviest_first = np.argsort(-work, kind="stable")
    rank = np.empty_like(heaviest_first)
    rank[heaviest_first] = np.arange(len(work))
    members = order[np.argsort(rank[pack_of], kind="stable")].tolist()
    sizes = np.bincount(pack_of, minlength=len(work))[heaviest_first]
    ends = np.cumsum(sizes).tolist()
    return [
        members[end - size : end] for end, size in zip(ends, sizes.tolist(), strict=True) if size
    ]
