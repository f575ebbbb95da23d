"""Pairs of residues as engines give them: i <= j of each protein of a pack, row by row."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.errors import NonFiniteError, UnsupportedError

if TYPE_CHECKING:
    from runtime.engine import Outputs
    from runtime.manifest_schema import Manifest
    from runtime.packing import PackedBatch

# The output, one probability for each pair.
CONTACTS = "contacts"


def check_contacts(manifest: "Manifest") -> None:
    """Raises UnsupportedError for an artifact without contacts; says how to build one with them."""
    if not manifest.gives(CONTACTS):
        raise UnsupportedError(
            f"artifact {manifest.name!r} gives no contacts: build it with "
            "'esm2-export build --contacts', from a checkpoint with a contact head"
        )


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


def contacts_of(outputs: "Outputs", batch: "PackedBatch") -> list[NDArray[np.floating]]:
    """Each protein's pairs of what an engine computed for ``batch``.

    Raises:
        NonFiniteError: one is NaN or Inf.
    """
    pairs = outputs.tensors[CONTACTS][:, 0]
    found = np.split(pairs, pair_bounds(batch.cu_seqlens)[1:-1])
    for i, values in enumerate(found):
        if not np.isfinite(values).all():
            raise NonFiniteError(
                f"the engine returned NaN or Inf for the contacts of {batch.name(i)!r}. A "
                "protein of <eos> alone has none; else try a float32 artifact"
            )
    return found
