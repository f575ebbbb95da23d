"""A stretch of a stream of proteins: records, each distinct protein once, packs of those."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.engine import Engine
from runtime.packing import PackedBatch
from runtime.readers.records import Prepared, Record, Rejection

Values = NDArray[np.floating]


class Task(Protocol):
    """What is run in place of records, and what comes of it: where that is not the protein itself.

    Records may share what is run, as the variants of one protein do.
    """

    def prepare(self, record: Record) -> Prepared | Rejection:
        """What is run of a record, as its windows."""
        ...

    def of_pack(self, engine: Engine, batch: PackedBatch) -> list[Values]:
        """What is kept of each protein of a pack."""
        ...

    def result(self, record: Record, values: list[Values]) -> Values:
        """What the values of a record's windows, in order, come to."""
        ...


@dataclass(frozen=True)
class Holder:
    """A record that holds a protein, or a window of one.

    Attributes:
        place: among the records that are run.
        row: in the input.
        record: what was read.
        num_tokens: of all of it.
        window, windows: which of how many (see ``runtime.sliding``); most are run whole.
    """

    place: int
    row: int
    record: Record
    num_tokens: int
    window: int = 0
    windows: int = 1


@dataclass(frozen=True)
class Pack:
    """Distinct proteins by their tokens, and the holders of each."""

    holders: list[list[Holder]]
    tokens: list[NDArray[np.int64]]

    def batch(self) -> PackedBatch:
        """To run."""
        return PackedBatch.from_tokens(self.tokens, [first.record.id for first, *_ in self.holders])


@dataclass(frozen=True)
class Window:
    """Records, each distinct protein among them once, and packs of those.

    Attributes:
        num_records: that are run.
        holders: of each distinct protein, those with the first record of this window at place 0.
        tokens: of each distinct protein.
        packs: of distinct proteins that are to be computed.
        found: of the others, which were computed before.
    """

    num_records: int
    holders: list[list[Holder]]
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
        holders = [
            [replace(holder, place=records_before + holder.place) for holder in self.holders[each]]
            for each in chosen
        ]
        return Pack(holders, [self.tokens[each] for each in chosen])
