"""A stretch of a stream of proteins: records, each distinct protein once, packs of those."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.packing import PackedBatch
from runtime.readers.records import Record

Values = NDArray[np.floating]


@dataclass(frozen=True)
class Placed:
    """A record: its place among those that are run, and its row in the input."""

    place: int
    row: int
    record: Record


@dataclass(frozen=True)
class Pack:
    """Proteins by their tokens, and the records that each of them is of."""

    records: list[list[Placed]]
    tokens: list[NDArray[np.int64]]

    def batch(self) -> PackedBatch:
        """To run."""
        return PackedBatch.from_tokens(self.tokens, [first.record.id for first, *_ in self.records])


@dataclass(frozen=True)
class Window:
    """Records, each distinct protein among them once, and packs of those.

    Attributes:
        records: that are run, and the row of each in the input.
        holders: of each distinct protein, the numbers of the records that hold it.
        tokens: of each distinct protein.
        packs: of distinct proteins that are to be computed.
        found: of the others, which were computed before.
    """

    records: list[tuple[int, Record]]
    holders: list[list[int]]
    tokens: list[NDArray[np.int64]]
    packs: list[list[int]]
    found: dict[int, Values]

    def pack(self, members: Iterable[int], records_before: int) -> Pack:
        """Some of the distinct proteins.

        Args:
            members: their numbers.
            records_before: records that are run in the windows before.
        """
        chosen = list(members)
        records = [
            [Placed(records_before + i, *self.records[i]) for i in self.holders[each]]
            for each in chosen
        ]
        return Pack(records, [self.tokens[each] for each in chosen])
