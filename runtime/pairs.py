"""Pairs of residues as engines give them: i <= j of each protein of a pack, row by row."""

import numpy as np
from numpy.typing import NDArray

# The output, one probability for each pair.
CONTACTS = "contacts"


def pair_bounds(cu_seqlens: NDArray[np.integer]) -> NDArray[np.int64]:
    """Which pairs belong to which protein: ``[N + 1]``, as ``cu_seqlens`` says it of tokens.

    A protein of L tokens has n = L - 2 residues between BOS and EOS, and n (n + 1) / 2 pairs.
    """
    residues = np.maximum(np.diff(cu_seqlens).astype(np.int64) - 2, 0)
    return np.concatenate([[0], np.cumsum(residues * (residues + 1) // 2)])


def as_map(pairs: NDArray[np.floating]) -> NDArray[np.floating]:
    """``[n (n + 1) / 2]`` of one protein as a symmetric ``[n, n]``."""
    length = (int(np.sqrt(8 * len(pairs) + 1)) - 1) // 2
    found = np.empty((length, length), pairs.dtype)
    upper = np.triu_indices(length)
    found[upper] = pairs
    found.T[upper] = pairs
    return found
