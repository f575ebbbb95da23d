"""The proteins that are run, and how each kind of contender batches them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.bin_packing import even_packs

# Of the protein whose latency is measured: residues, BOS, EOS.
LATENCY_LENGTH = 302


Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class Workload:
    """Lengths in tokens, BOS and EOS included; the same every time.

    Attributes:
        description: for people.
        sample: from a number of proteins to their lengths. Of fewer, the first ones.
    """

    description: str
    sample: Callable[[int], Lengths]

    def draw(self, tokens: int) -> list[int]:
        """As many proteins as it takes to hold ``tokens``."""
        count = 64
        while (ends := np.cumsum(lengths := self.sample(count)))[-1] < tokens:
            count *= 2
        drawn: list[int] = lengths[: np.searchsorted(ends, tokens) + 1].tolist()
        return drawn


def log_normal(median: int, sigma: float, low: int, high: int) -> Callable[[int], Lengths]:
    """Numbers of residues, clipped."""

    def sample(proteins: int) -> Lengths:
        residues = np.exp(np.random.default_rng(20).normal(np.log(median), sigma, proteins))
        return residues.clip(low, high).astype(np.int64) + 2

    return sample


def uniform(low: int, high: int) -> Callable[[int], Lengths]:
    """Numbers of residues, from ``low`` to ``high``."""
    return lambda proteins: np.random.default_rng(20).integers(low, high + 1, proteins) + 2


def skewed(proteins: int) -> Lengths:
    """One of 1,000 before each hundred of 30."""
    return np.where(np.arange(proteins) % 101 == 0, 1000, 30)


WORKLOADS = {
    "mixed": Workload("log-normal, median 280 residues", log_normal(280, 0.6, 20, 1022)),
    "short": Workload("short ORFs, median 47 residues", log_normal(47, 0.5, 10, 200)),
    "long": Workload("all of 1,022 residues", uniform(1022, 1022)),
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
