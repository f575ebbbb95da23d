"""The proteins that are run, and how each contender batches them."""

import numpy as np

from runtime.bin_packing import even_packs

# Log-normal numbers of residues, clipped.
SETS = {
    "mixed": {"median": 280, "sigma": 0.6, "low": 20, "high": 1022},
    "short": {"median": 47, "sigma": 0.5, "low": 10, "high": 200},
}
# To find the best batch size, and to measure it.
SCAN_TOKENS, TOKENS = 8_192, 24_576
PACK_TOKENS = (1024, 2048, 4096, 8192)
PADDED_TOKENS = (256, 512, 1024, 2048, 4096)


def lengths_of(name: str, tokens: int = TOKENS) -> list[int]:
    """Lengths in tokens (BOS and EOS included) of a set's proteins; the same every time."""
    spec = SETS[name]
    random = np.random.default_rng(20)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        residues = np.exp(random.normal(np.log(spec["median"]), spec["sigma"]))
        lengths.append(int(residues.clip(spec["low"], spec["high"])) + 2)
    return lengths


def packs_of(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """As the runtime packs: lengths of each pack."""
    return [[lengths[i] for i in pack] for pack in even_packs(lengths, max_tokens)]


def padded_batches_of(lengths: list[int], max_tokens: int) -> list[list[int]]:
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


def random_tokens(length: int, random: np.random.Generator) -> np.ndarray:
    """BOS, common residues, EOS."""
    tokens = random.integers(4, 24, length)
    tokens[[0, -1]] = 0, 2
    return tokens
