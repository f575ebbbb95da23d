"""Runs of ONNX Runtime whose tensors stay on the card, and what is pooled there."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.pooling import Pool, pooled_rows

Card = tuple[str, int]
# What the host reads: it is a size.
_ON_THE_HOST = "max_seqlen"


def run_on_card(
    session: Any, feeds: Mapping[str, Any], names: Sequence[str], card: Card
) -> dict[str, Any]:
    """Runs a graph, and waits for it.

    Args:
        session: an ``InferenceSession``.
        feeds: all inputs, see ``on_card``.
        names: of all outputs.
        card: such as ``("cuda", 0)``.

    Returns:
        Outputs by name: ``OrtValue`` on the card.
    """
    binding = session.io_binding()
    for name, value in feeds.items():
        if name == _ON_THE_HOST:
            binding.bind_cpu_input(name, value)
        else:
            binding.bind_ortvalue_input(name, value)
    for name in names:
        binding.bind_output(name, *card)
    session.run_with_iobinding(binding)
    return dict(zip(names, binding.get_outputs(), strict=True))


def on_card(feeds: Mapping[str, NDArray[Any]], card: Card) -> dict[str, Any]:
    """Copies of inputs on the card, but for sizes: ``feeds`` of ``run_on_card``."""
    import onnxruntime

    return {
        name: array
        if name == _ON_THE_HOST
        else onnxruntime.OrtValue.ortvalue_from_numpy(array, *card)
        for name, array in feeds.items()
    }


def places_of(cu_seqlens: NDArray[np.int32], how: Pool) -> dict[str, NDArray[Any]]:
    """What the graph for pooling takes beside rows.

    Args:
        cu_seqlens: ``[N + 1]``.
        how: see ``runtime.pooling.pool``; not ``"none"``.

    Returns:
        ``slots`` ``[T]`` int32: the protein that each row is pooled into, N for none; ``counts``
        ``[N + 1, 1]`` float64: how many rows each protein has, and 1.

    Raises:
        InputError: ``how`` is ``"none"`` or unknown.
    """
    first, last = pooled_rows(cu_seqlens, how)
    protein = np.repeat(np.arange(len(first), dtype=np.int32), np.diff(cu_seqlens))
    row = np.arange(len(protein))
    is_pooled = (row >= first[protein]) & (row < last[protein])
    counts = np.append(last - first, 1).astype(np.float64)
    return {
        "slots": np.where(is_pooled, protein, np.int32(len(first))),
        "counts": counts[:, np.newaxis],
    }
