"""Embeddings gathered until they are worth writing: bounded in bytes, whatever their shape."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from runtime.errors import EngineError, NonFiniteError
from runtime.runner import Embedding
from runtime.writers.columns import COLUMNS, OTHERS

# Held in memory before they go to the file, and once more while they are joined.
BLOCK_BYTES = 8 << 20
# What Python itself holds for each protein.
OVERHEAD_BYTES = 512
# After these the proteins before them are as good as they were; a user's mistake is mended first.
SPARING = (MemoryError, EngineError, NonFiniteError)


@dataclass(frozen=True)
class Block:
    """Some proteins, one after the other.

    Attributes:
        ids: ``[N]``.
        num_tokens: ``[N]`` int64.
        rows: ``[N, E]`` little-endian; ``[sum(L), E]`` where there is one row a residue, ``[N]``
            where there is one number a record.
        ends: ``[N]`` int64, where each protein ends in ``rows``; None where it has one row.
        numbers: ``[N]`` int64, the row of each protein's record in the input.
        columns: of ``columns.COLUMNS`` and ``OTHERS``, ``[N]`` each.
    """

    ids: list[str]
    num_tokens: NDArray[np.int64]
    rows: NDArray[np.floating]
    ends: NDArray[np.int64] | None
    numbers: NDArray[np.int64]
    columns: dict[str, list[str]]


def blocks(embeddings: Iterable[Embedding], columns: Sequence[str] = ()) -> Iterator[Block]:
    """Joins embeddings to blocks of about ``BLOCK_BYTES``; a larger one is a block of its own.

    Args:
        embeddings: consumed once.
        columns: names of ``columns.COLUMNS`` and ``OTHERS`` to add.

    Raises:
        MemoryError, EngineError, NonFiniteError: of ``embeddings``, after a last block with all
            that came before.
    """
    gathered: list[Embedding] = []
    try:
        for members in _gathered(embeddings, gathered, BLOCK_BYTES):
            yield _joined(members, columns)
    except SPARING:
        # In small pieces: there may be no memory left to join them.
        for members in _gathered(iter(gathered[:]), [], BLOCK_BYTES // 32):
            yield _joined(members, columns)
        raise


def _gathered(
    embeddings: Iterable[Embedding], gathered: list[Embedding], num_bytes: int
) -> Iterator[list[Embedding]]:
    """Gives ``gathered`` whenever it holds so many bytes; who takes it empties it."""
    held = 0
    for embedding in embeddings:
        record = embedding.record
        text = len(embedding.id) + len(record.header) + len(record.sequence)
        size = embedding.values.nbytes + 4 * text + OVERHEAD_BYTES
        if gathered and held + size > num_bytes:
            yield gathered
            held = 0
        gathered.append(embedding)
        held += size
    if gathered:
        yield gathered


def _joined(embeddings: list[Embedding], columns: Sequence[str]) -> Block:
    """Empties the list when all is done, so that nothing is held twice while it is written."""
    known = COLUMNS | OTHERS
    values = [embedding.values for embedding in embeddings]
    per_residue = values[0].ndim == 2
    if len(values) == 1:
        rows = values[0] if per_residue else values[0][None]
    else:
        rows = np.concatenate(values) if per_residue else np.stack(values)
    block = Block(
        [embedding.id for embedding in embeddings],
        np.array([embedding.num_tokens for embedding in embeddings], np.int64),
        np.ascontiguousarray(rows, rows.dtype.newbyteorder("<")),
        np.array(list(accumulate(map(len, values))), np.int64) if per_residue else None,
        np.array([embedding.row for embedding in embeddings], np.int64),
        {name: list(map(known[name], embeddings)) for name in columns},
    )
    embeddings.clear()
    return block
