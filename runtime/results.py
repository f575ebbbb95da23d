"""What comes out of a stream: one embedding for each record, in the order of the input."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.pooling import Pool
from runtime.readers.records import Record
from runtime.sliding import joined
from runtime.windows import Holder, Pack, Task, Values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


NO_RECORD = Record("", "")


@dataclass(frozen=True)
class Embedding:
    """One protein's result.

    Attributes:
        id: of the record.
        num_tokens: of the protein, BOS and EOS included.
        values: ``[E]``, or ``[L, E]`` for its residues where pooling is ``"none"``.
        row: of the record in the input, from 0; those that were rejected count.
        record: that it is of, as it was given.
    """

    id: str
    num_tokens: int
    values: "NDArray[np.floating]"
    row: int = 0
    record: Record = NO_RECORD


class InOrder:
    """Takes packs as they are finished, and gives embeddings in the order of the records.

    Args:
        pool: of the vectors that come.
        task: whose values they are; None where they are vectors.
    """

    def __init__(self, pool: Pool, task: Task | None = None):
        self._pool: Pool = pool
        self._task = task
        self._finished: dict[int, Embedding] = {}
        self._windows: dict[int, dict[int, Values]] = {}
        self._next = 0

    def add(self, pack: Pack, values: list[Values]) -> Iterator[Embedding]:
        """Gives those that the next records waited for.

        Args:
            pack: that is finished.
            values: of each of its proteins.
        """
        self._finished.update(self.whole(pack, values))
        while self._next in self._finished:
            yield self._finished.pop(self._next)
            self._next += 1

    def whole(self, pack: Pack, values: list[Values]) -> Iterator[tuple[int, Embedding]]:
        """Of each record whose last window this is, its place and its embedding.

        Equal proteins get copies, which their owner may change.
        """
        for holders, vector in zip(pack.holders, values, strict=True):
            for i, holder in enumerate(holders):
                own = vector.copy() if i and self._task is None else vector
                if holder.windows > 1:
                    there = self._windows.setdefault(holder.place, {})
                    there[holder.window] = own
                    if len(there) < holder.windows:
                        continue
                    del self._windows[holder.place]
                    in_turn = [there[window] for window in sorted(there)]
                    own = self._joined(holder, in_turn)
                elif self._task is not None:
                    own = self._joined(holder, [vector])
                record = holder.record
                yield (
                    holder.place,
                    Embedding(record.id, holder.num_tokens, own, holder.row, record),
                )

    def _joined(self, holder: Holder, in_turn: list[Values]) -> Values:
        if self._task is not None:
            return self._task.result(holder.record, in_turn)
        return joined(in_turn, holder.num_tokens - 2, self._pool)
