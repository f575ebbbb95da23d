"""What eager fair-esm says of a pack: the oracle's answers, or those in an engine's dtype."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.manifest import EMBEDDING, POOLED, Manifest

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Answers:
    """Of one pack.

    Attributes:
        input_ids: ``[T]`` int64, by fair-esm's alphabet.
        cu_seqlens: ``[N + 1]`` int32.
        tensors: ``logits`` ``[T, 33]`` where there is an LM head, ``representations.<k>``
            ``[T, E]``, ``EMBEDDING`` ``[N, E]`` and, where there is one, ``HEAD`` ``[N, C]`` or
            ``[T, C]``, of the proteins in their order.
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

    def bounds(self, tensor: str) -> NDArray[np.int32]:
        """``[N + 1]``, which rows of ``tensor`` belong to which protein."""
        if tensor in self.per_protein:
            return np.arange(len(self.cu_seqlens), dtype=np.int32)
        return self.cu_seqlens

    def of_engine(self, manifest: Manifest) -> Iterator[tuple[str, Floats, NDArray[np.int32]]]:
        """All that an engine of an artifact should give: name, values, and bounds of proteins.

        Where its graph pools, that is the embedding once more.
        """
        for name, values in self.tensors.items():
            yield name, values, self.bounds(name)
        for output in manifest.signature.outputs:
            if output.name == POOLED:
                yield output.name, self.tensors[EMBEDDING], self.bounds(EMBEDDING)
