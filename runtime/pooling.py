"""From one vector per token to one per protein."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError

Pool = Literal["mean", "mean-with-eos", "cls", "none"]
POOL_CHOICES: tuple[str, ...] = get_args(Pool)

Floats = NDArray[np.floating]


def check_pool(how: str) -> None:
    """Raises InputError if ``how`` is none of ``POOL_CHOICES``."""
    if how not in POOL_CHOICES:
        raise InputError(f"pool must be one of {', '.join(POOL_CHOICES)}, got {how!r}")


def check_per_protein(how: str) -> None:
    """Raises InputError if ``how`` does not give one vector for each protein."""
    if how not in POOL_CHOICES or how == "none":
        raise InputError(f"pool must be mean, mean-with-eos or cls, got {how!r}")


def pool(representations: Floats, cu_seqlens: NDArray[np.int32], how: Pool) -> Floats:
    """Pools a pack's representations.

    - ``mean``: over residues alone, neither BOS nor EOS; what fair-esm's extract script calls
      ``mean_representations`` (scripts/extract.py). A protein without residues gives NaN, as there.
    - ``mean-with-eos``: BOS skipped, EOS kept; for classifiers that were trained so.
    - ``cls``: the BOS token.

    A protein of a single token is taken as it is. Sums run in float64: the float32 sum of a long
    protein would add more error than the engine has.

    Args:
        representations: ``[T, E]``.
        cu_seqlens: ``[N + 1]``.
        how: one of the above.

    Returns:
        ``[N, E]`` in the dtype of ``representations``.

    Raises:
        InputError: ``how`` is ``"none"`` or unknown.
    """
    first, last = pooled_rows(cu_seqlens, how)
    pooled = np.full((len(first), representations.shape[1]), np.nan, representations.dtype)
    for protein, (start, end) in enumerate(zip(first, last, strict=True)):
        if end > start:
            pooled[protein] = representations[start:end].mean(axis=0, dtype=np.float64)
    return pooled


def pooled_rows(
    cu_seqlens: NDArray[np.int32], how: Pool
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The first row of each protein that ``pool`` takes in, and the row after the last: ``[N]``.

    Raises:
        InputError: ``how`` is ``"none"`` or unknown.
    """
    check_per_protein(how)
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    if how == "cls":
        return starts, starts + 1
    is_single = ends - starts == 1
    eos = 0 if how == "mean-with-eos" else 1
    return np.where(is_single, starts, starts + 1), np.where(is_single, ends, ends - eos)


def residue_rows(start: int, end: int) -> slice:
    """The rows of a protein's residues in its pack: BOS and EOS left out, a single token kept."""
    return slice(start, end) if end - start == 1 else slice(start + 1, end - 1)
