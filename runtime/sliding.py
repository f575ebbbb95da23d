"""Proteins longer than the model was trained on, run as windows that overlap.

ESM-2 was trained on crops of 1,022 residues (Lin et al. 2023, supplement A.1.1).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.pooling import Pool

Floats = NDArray[np.floating]

TRAINED_ON = 1022
# Of a window's residues, those that the next one holds too, at least.
OVERLAP = 0.25


def starts_of(length: int, window: int) -> list[int]:
    """Where windows begin that cover ``length`` residues: all full, as even as can be.

    Args:
        length: residues of the protein, more than ``window``.
        window: residues of one.
    """
    step = max(1, window - math.ceil(OVERLAP * window))
    count = 1 + math.ceil((length - window) / step)
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def windows_of(tokens: NDArray[np.int64], window: int) -> tuple[NDArray[np.int64], ...]:
    """Cuts a protein's tokens; each window has BOS and EOS of its own.

    Args:
        tokens: ``[L + 2]``, BOS and EOS included.
        window: residues of one, less than L.
    """
    bos, residues, eos = tokens[:1], tokens[1:-1], tokens[-1:]
    return tuple(
        np.concatenate([bos, residues[start : start + window], eos])
        for start in starts_of(len(residues), window)
    )


def joined(windows: Sequence[Floats], length: int, how: Pool) -> Floats:
    """What a protein's windows come to, summed in float64.

    Args:
        windows: of one protein, in order: ``[E]`` each, or ``[W, E]`` where ``how`` is ``"none"``.
        length: residues of the protein.
        how: the pooling of the windows. They are as long as each other, so pooled vectors are
            averaged; a residue that lies in two windows counts twice in ``mean``. Rows of a residue
            are averaged over the windows that hold it.

    Returns:
        ``[E]``, or ``[L, E]``, in the dtype of ``windows``.
    """
    dtype = windows[0].dtype
    if how != "none":
        pooled: Floats = np.stack(windows).mean(axis=0, dtype=np.float64)
        return pooled.astype(dtype)
    size = len(windows[0])
    sums = np.zeros((length, windows[0].shape[1]))
    counts = np.zeros((length, 1))
    for start, rows in zip(starts_of(length, size), windows, strict=True):
        sums[start : start + size] += rows
        counts[start : start + size] += 1
    sums /= counts
    return sums.astype(dtype)
