"""The proteins that are run, and how each kind of contender batches them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.bin_packing import even_packs

# Of the protein whose latency is measured: residues, BOS, EOS.
LATENCY_LENGTH = 302


@dataclass(frozen=True)
class Workload:
    """Lengths in tokens, BOS and EOS included; the same every time.

    Attributes:
        description: for people.
        draw: from a number of tokens to lengths of at least that many together.
    """

    description: str
    draw: Callable[[int], list[int]]


def log_normal(median: int, sigma: float, low: int, high: int) -> Callable[[int], list[int]]:
    """Numbers of residues, clipped."""

    def draw(tokens: int) -> list[int]:
        random = np.random.default_rng(20)
        lengths: list[int] = []
        while sum(lengths) < tokens:
            residues = np.exp(random.normal(np.log(median), sigma))
            lengths.append(int(residues.clip(low, high)) + 2)
        return lengths

    return draw


def uniform(length: int) -> Callable[[int], list[int]]:
    """All of one length."""
    return lambda tokens: -(-tokens // length) * [length]


def skewed(tokens: int) -> list[int]:
    """One of 1,000 among a hundred of 30, as often as it takes."""
    return -(-tokens // 4000) * [1000, *100 * [30]]


WORKLOADS = {
    "mixed": Workload("log-normal, median 280 residues", log_normal(280, 0.6, 20, 1022)),
    "short": Workload("short ORFs, median 47 residues", log_normal(47, 0.5, 10, 200)),
    "long": Workload("all of 1,022 residues", uniform(1024)),
    "skewed": Workload("1 of 1,000 tokens to 100 of 30", skewed),
}


def packs_of(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """As the runtime packs: lengths of each pack."""
    return [[lengths[i] for i in pack] for pack in even_packs(lengths, max_tokens)]


def padded_batches_of(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Sorted by length, filled while the padded batch stays under ``max_tokens``.

    Source: fair-esm esm/data.py:66, ``get_batch_indices``; a longer protein is a batch of its own.
    """
    batches: list[list[int]] = []
    for length in sorted(lengths):
        if batches and length * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(length)
        else:
            batches.append([length])
    return batches
