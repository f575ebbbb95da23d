"""A stretch of a stream of proteins: records, each distinct protein once, packs of those."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.packing import PackedBatch

Values = NDArray[np.floating]


@dataclass(frozen=True)
class Placed:
    """A record: its place among those that are run, its row in the input, and its name."""

    place: int
    row: int
    name: str


@dataclass(frozen=True)
class Pack:
    """Proteins by their tokens, and the records that each of them is of."""

    records: list[list[Placed]]
    tokens: list[NDArray[np.int64]]

    def batch(self) -> PackedBatch:
        """To run."""
        return PackedBatch.from_tokens(self.tokens, [first.name for first, *_ in self.records])


@dataclass(frozen=True)
class Window:
    """Records, each distinct protein among them once, and packs of those.

    Attributes:
        rows, names: of each record.
        records: of each distinct protein, the records that hold it.
        tokens: of each distinct protein.
        packs: of distinct proteins that are to be computed.
        found: of the others, which were computed before.
    """

    rows: list[int]
    names: list[str]
    records: list[list[int]]
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
            [Placed(records_before + i, self.rows[i], self.names[i]) for i in self.records[each]]
            for each in chosen
        ]
        return Pack(records, [self.tokens[each] for each in chosen])
