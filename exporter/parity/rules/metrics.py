"""Distances between an engine's output and the oracle's."""

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

# An error where none is allowed. Not infinity: JSON has no such number.
UNBOUNDED = 1e30


class TensorError(msgspec.Struct, frozen=True):
    """How far one output tensor of one pack is from the oracle.

    Attributes:
        relative_l2: ``|actual - expected| / |expected|`` over the whole tensor.
        worst_protein: the protein with the largest relative L2 of its own.
        worst_protein_relative_l2: that error.
        worst_absolute: largest difference of one number.
        worst_row: the row (token, or protein if pooled) where it occurs.
        worst_column: and the column.
        cosine_p01: 1st percentile of the rows' cosines.
        cosine_min: the smallest of them.
    """

    relative_l2: float
    worst_protein: int
    worst_protein_relative_l2: float
    worst_absolute: float
    worst_row: int
    worst_column: int
    cosine_p01: float
    cosine_min: float


def compare(
    actual: Floats, expected: Floats, bounds: NDArray[np.integer], may_be_constant: bool = False
) -> TensorError:
    """Measures ``actual`` against ``expected``.

    Args:
        actual: ``[R, C]`` of any float dtype.
        expected: ``[R, C]`` float64.
        bounds: ``[N + 1]``, which rows belong to which protein.
        may_be_constant: a single number is something to compare with.

    Raises:
        ValueError: another shape, nothing to compare, a constant to compare with, or NaN.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"shape {list(actual.shape)}, expected {list(expected.shape)}")
    if expected.size == 0 or (np.ptp(expected) == 0 and not may_be_constant):
        raise ValueError("the oracle's answer is empty or constant: nothing was compared")
    if not np.isfinite(expected).all():
        raise ValueError("the oracle's answer is not finite")
    if not np.isfinite(actual).all():
        first = int(np.argmin(np.isfinite(actual).all(axis=1)))
        raise ValueError(f"NaN or Inf, first in row {first}")
    wide = actual.astype(np.float64)
    difference = np.abs(wide - expected)
    proteins = ratio(
        np.add.reduceat((difference**2).sum(axis=1), bounds[:-1]) ** 0.5,
        np.add.reduceat((expected**2).sum(axis=1), bounds[:-1]) ** 0.5,
    )
    worst_protein = int(proteins.argmax())
    row, column = np.unravel_index(difference.argmax(), difference.shape)
    cosines = _cosine(wide, expected)
    return TensorError(
        relative_l2=float(ratio(*map(float, map(np.linalg.norm, (difference, expected))))),
        worst_protein=worst_protein,
        worst_protein_relative_l2=float(proteins[worst_protein]),
        worst_absolute=float(difference[row, column]),
        worst_row=int(row),
        worst_column=int(column),
        cosine_p01=float(np.percentile(cosines, 1)),
        cosine_min=float(cosines.min()),
    )


def ratio(a: Floats | float, b: Floats | float) -> Floats:
    """``a / b`` of nonnegative numbers, in which 0 / 0 is 0 and x / 0 is ``UNBOUNDED``."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    unbounded = np.where(a > 0, UNBOUNDED, 0.0)
    return np.divide(a, b, out=unbounded, where=b > 0)


def _cosine(a: Floats, b: Floats) -> Floats:
    """Of each row; two rows of zeros (a mask's embedding) are equal, so theirs is 1."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    equal = (a == b).all(axis=1).astype(np.float64)
    cosines: Floats = np.divide((a * b).sum(axis=1), norms, out=equal, where=norms > 0)
    return cosines
