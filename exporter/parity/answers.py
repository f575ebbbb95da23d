"""What eager fair-esm says of a pack: the oracle's answers, or those in an engine's dtype."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.manifest_schema import EMBEDDING, POOLED, Manifest
from runtime.pairs import CONTACTS, pair_bounds

Floats = NDArray[np.floating]

# Numbers whose error together says something of an engine.
ENOUGH_PAIRS = 200


@dataclass(frozen=True)
class Answers:
    """Of one pack.

    Attributes:
        input_ids: ``[T]`` int64, by fair-esm's alphabet.
        cu_seqlens: ``[N + 1]`` int32.
        tensors: ``logits`` ``[T, 33]`` where there is an LM head, ``representations.<k>``
            ``[T, E]``, ``EMBEDDING`` ``[N, E]`` and, where there are such, ``HEAD`` ``[N, C]`` or
            ``[T, C]`` and ``contacts`` ``[P, 1]``, of the proteins in their order.
        per_protein: those of N rows.
    """

    input_ids: NDArray[np.int64]
    cu_seqlens: NDArray[np.int32]
    tensors: dict[str, Floats]
    per_protein: frozenset[str] = frozenset([EMBEDDING])

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest protein."""
        return int(np.diff(self.cu_seqlens).max())

    def bounds(self, tensor: str) -> NDArray[np.integer]:
        """``[M + 1]``: which rows of ``tensor`` belong to which protein.

        Of contacts, neighbours that have few are one: the error of three numbers is luck.
        """
        if tensor in self.per_protein:
            return np.arange(len(self.cu_seqlens))
        if tensor == CONTACTS:
            return _with_enough(pair_bounds(self.cu_seqlens))
        return self.cu_seqlens

    def of_engine(self, manifest: Manifest) -> Iterator[tuple[str, Floats, NDArray[np.integer]]]:
        """All that an engine of an artifact should give: name, values, and bounds of proteins.

        Where its graph pools, that is the embedding once more.
        """
        for name, values in self.tensors.items():
            yield name, values, self.bounds(name)
        for output in manifest.signature.outputs:
            if output.name == POOLED:
                yield output.name, self.tensors[EMBEDDING], self.bounds(EMBEDDING)


def _with_enough(bounds: NDArray[np.integer]) -> NDArray[np.integer]:
    """Those of ``bounds`` with ``ENOUGH_PAIRS`` rows between them, the first and the last."""
    kept = [bounds[0]]
    for bound in bounds[1:]:
        if bound - kept[-1] >= ENOUGH_PAIRS and bounds[-1] - bound >= ENOUGH_PAIRS:
            kept.append(bound)
    return np.array([*kept, bounds[-1]])
