"""A pack: proteins one after the other in a 1-D tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.tokenizer import PAD_ID, TOKENS, Unknown, tokenize


@dataclass(frozen=True)
class PackedBatch:
    """N proteins as one pack of T tokens; checked when made.

    Attributes:
        input_ids: ``[T]`` int64 token ids, BOS and EOS of every protein included, no padding.
        cu_seqlens: ``[N + 1]`` int32, starts at 0, strictly increasing, ends at T.
        max_seqlen: tokens of the longest protein.
        names: N names for messages, or empty.

    Raises:
        InputError: any of the above does not hold; lists every problem.
    """

    input_ids: NDArray[np.int64]
    cu_seqlens: NDArray[np.int32]
    max_seqlen: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = _batch_problems(self)
        if problems:
            raise InputError("not a valid pack: " + "; ".join(problems))

    @classmethod
    def from_tokens(
        cls, tokens: Sequence[NDArray[np.int64]], names: Sequence[str] = ()
    ) -> "PackedBatch":
        """Packs tokenized proteins in the order given."""
        if not tokens:
            raise InputError("a pack needs at least one protein, got none")
        lengths = [len(protein) for protein in tokens]
        return cls(
            input_ids=np.concatenate(tokens),
            cu_seqlens=np.concatenate(([0], np.cumsum(lengths))).astype(np.int32),
            max_seqlen=max(lengths),
            names=tuple(names),
        )

    @classmethod
    def from_sequences(
        cls, sequences: Sequence[str], names: Sequence[str] = (), unknown: Unknown = "error"
    ) -> "PackedBatch":
        """Tokenizes sequences (BOS and EOS added) and packs them in the order given.

        Raises:
            InputError: one string instead of a list, another number of names, or as ``tokenize``.
        """
        if isinstance(sequences, str):
            raise InputError(
                "sequences must be a list of proteins, got one string, of which each letter would "
                "be a protein. Put it in a list: [sequence]"
            )
        labels = names or [""] * len(sequences)
        if isinstance(names, str) or len(labels) != len(sequences):
            raise InputError(
                f"names must be a list of {len(sequences)}, one for each sequence, got {names!r}"
            )
        tokens = [
            tokenize(sequence, name, unknown)
            for sequence, name in zip(sequences, labels, strict=True)
        ]
        return cls.from_tokens(tokens, names)

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.input_ids)

    @property
    def num_proteins(self) -> int:
        """N."""
        return len(self.cu_seqlens) - 1

    def name(self, protein: int) -> str:
        """The protein's name, or its place in the pack if it has none."""
        return self.names[protein] if self.names else f"protein {protein}"


def _batch_problems(batch: PackedBatch) -> list[str]:
    ids, bounds = batch.input_ids, batch.cu_seqlens
    problems = []
    if ids.dtype != np.int64 or ids.ndim != 1:
        problems.append(f"input_ids must be int64 [T], got {ids.dtype} {list(ids.shape)}")
    if bounds.dtype != np.int32 or bounds.ndim != 1 or len(bounds) < 2:
        problems.append(
            f"cu_seqlens must be int32 [N + 1] with N >= 1, got {bounds.dtype} {list(bounds.shape)}"
        )
    if problems:
        return problems
    lengths = np.diff(bounds)
    if bounds[0] != 0 or bounds[-1] != len(ids):
        problems.append(
            f"cu_seqlens must run from 0 to T = {len(ids)}, got {bounds[0]}..{bounds[-1]}"
        )
    if (lengths <= 0).any():
        place = int(np.argmax(lengths <= 0))
        problems.append(
            "cu_seqlens must be strictly increasing, got "
            f"cu_seqlens[{place}] = {bounds[place]}, cu_seqlens[{place + 1}] = {bounds[place + 1]}"
        )
    elif batch.max_seqlen != lengths.max():
        problems.append(
            f"max_seqlen must be the longest protein's {lengths.max()} tokens, "
            f"got {batch.max_seqlen}"
        )
    wrong = (ids < 0) | (ids >= len(TOKENS)) | (ids == PAD_ID)
    if wrong.any():
        place = int(np.argmax(wrong))
        problems.append(
            f"input_ids[{place}] = {ids[place]}: "
            f"ids run from 0 to {len(TOKENS) - 1} and a pack holds no padding ({PAD_ID})"
        )
    if batch.names and len(batch.names) != len(bounds) - 1:
        problems.append(f"got {len(batch.names)} names for {len(bounds) - 1} proteins")
    return problems
