"""Which protein comes next: clients share the engine evenly, and so do the requests of a client.

Of all that wait, the client that was given the fewest tokens comes first, and of its requests the
one that was given the fewest (start-time fair queueing, Goyal et al. 1996, with tokens as work). So
a request of one protein goes with the next pack, however many proteins others wait for.
"""

import heapq
import math
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.bin_packing import even_packs
from runtime.concurrency import LEAST_PACK_TOKENS

Tokens = NDArray[np.int64]

# Proteins that are passed over, to fill a pack with what still fits behind them.
MOST_PASSED_OVER = 32
# Packs are cut a little below what they may hold, so that even work costs no pack more.
FILL = 0.975


class Asked(Protocol):
    """What a queue knows of a request."""

    @property
    def client(self) -> str:
        """Who asks."""
        ...

    @property
    def kind(self) -> Hashable:
        """Of what is taken of its proteins."""
        ...

    @property
    def tokens(self) -> Sequence[Tokens]:
        """Of each protein."""
        ...


J = TypeVar("J", bound=Asked)


@dataclass(eq=False)
class Waiting(Generic[J]):
    """A request of which proteins wait.

    Attributes:
        job: the request.
        since: when it came.
        places: of its proteins that wait, in order.
        served: tokens that it was given.
        is_cancelled: nobody waits for it any more.
    """

    job: J
    since: float
    places: deque[int]
    served: float
    is_cancelled: bool = False

    @property
    def next_tokens(self) -> int:
        """Of its first protein."""
        return len(self.job.tokens[self.places[0]])


@dataclass(frozen=True)
class Member(Generic[J]):
    """A protein of a pack: the request that it is of, and its place among that one's proteins."""

    waiting: Waiting[J]
    place: int

    @property
    def tokens(self) -> Tokens:
        """Of the protein."""
        return self.waiting.job.tokens[self.place]


@dataclass
class _Client:
    served: float
    waiting: "dict[Waiting[Any], None]" = field(default_factory=dict)


@dataclass
class _Lane(Generic[J]):
    """Requests of one kind: their proteins may share a pack."""

    waiting: dict[Waiting[J], None] = field(default_factory=dict)  # by their arrival
    heap: list[tuple[float, float, int, Waiting[J]]] = field(default_factory=list)
    tokens: int = 0


class FairQueue(Generic[J]):
    """Proteins that wait, of requests of several kinds. For one thread.

    Args:
        budget: tokens of a pack; a longer protein gets one of its own.
        at_once: packs that are cut together, with even work.
    """

    def __init__(self, budget: int, at_once: int):
        self._budget = budget
        self._at_once = at_once
        self._lanes: dict[Hashable, _Lane[J]] = {}
        self._clients: dict[str, _Client] = {}
        self._number = 0
        self.tokens = 0
        """That wait."""

    def put(self, job: J, now: float) -> Waiting[J]:
        """Adds a request with at least one protein."""
        client = self._clients.get(job.client)
        if client is None:
            # Who comes anew begins where the others are, and is owed nothing for its absence.
            least = min((each.served for each in self._clients.values()), default=0.0)
            client = self._clients[job.client] = _Client(least)
        # As little is owed to a new request of a client that has others.
        served = min((each.served for each in client.waiting), default=0.0)
        waiting = Waiting(job, now, deque(range(len(job.tokens))), served)
        client.waiting[waiting] = None
        lane = self._lanes.setdefault(job.kind, _Lane())
        lane.waiting[waiting] = None
        self._push(lane, waiting)
        self._count(lane, sum(map(len, job.tokens)))
        return waiting

    def remove(self, waiting: Waiting[J]) -> None:
        """Of a request that nobody waits for, what was not cut yet leaves its place."""
        if waiting.is_cancelled:
            return
        waiting.is_cancelled = True
        lane = self._lanes.get(waiting.job.kind)
        if lane is not None and waiting in lane.waiting:
            self._count(lane, -sum(len(waiting.job.tokens[place]) for place in waiting.places))
            waiting.places.clear()
            self._leave(lane, waiting)

    def oldest(self) -> float | None:
        """When the request came that waits longest; None where nothing waits."""
        return min((self._oldest_of(lane) for lane in self._lanes.values()), default=None)

    def cut(self, now: float, max_wait: float, idle: int) -> list[list[Member[J]]]:
        """Packs of one kind, if it is time: one is full, or its oldest protein has waited enough.

        Args:
            now: on the clock of ``put``.
            max_wait: seconds.
            idle: engines that wait for a pack; what is too little for full ones is split for them.

        Returns:
            Packs, that with the most attention work first; none where it is not time.
        """
        due = [
            lane
            for lane in self._lanes.values()
            if lane.tokens >= self._budget or now - self._oldest_of(lane) >= max_wait
        ]
        if not due:
            return []
        lane = min(due, key=lambda each: (self._first(each), self._oldest_of(each)))
        members = list(self._take(lane))
        lengths = [len(member.tokens) for member in members]
        budget = max(math.ceil(sum(lengths) / idle), LEAST_PACK_TOKENS, max(lengths))
        return [
            [members[i] for i in pack] for pack in even_packs(lengths, min(budget, self._budget))
        ]

    # --- order ----------------------------------------------------------------------------------

    def _take(self, lane: _Lane[J]) -> Iterator[Member[J]]:
        """In fair order, what fills the packs."""
        room = self._budget
        if self._at_once > 1:
            room = max(1, int(FILL * self._at_once * room))
        passed_over: list[Waiting[J]] = []
        is_first = True
        while len(passed_over) < MOST_PASSED_OVER and (waiting := self._pop(lane)) is not None:
            length = waiting.next_tokens
            # The first always goes, though it may be longer than any pack.
            if not is_first and length > room:
                passed_over.append(waiting)
                continue
            is_first = False
            room -= length
            place = waiting.places.popleft()
            self._count(lane, -length)
            waiting.served += length
            self._clients[waiting.job.client].served += length
            if waiting.places:
                self._push(lane, waiting)
            else:
                self._leave(lane, waiting)
            yield Member(waiting, place)
            if room <= 0:
                break
        for waiting in passed_over:
            self._push(lane, waiting)

    def _key(self, waiting: Waiting[J]) -> tuple[float, float]:
        return self._clients[waiting.job.client].served, waiting.served

    def _push(self, lane: _Lane[J], waiting: Waiting[J]) -> None:
        self._number += 1
        heapq.heappush(lane.heap, (*self._key(waiting), self._number, waiting))

    def _pop(self, lane: _Lane[J]) -> Waiting[J] | None:
        """The request whose turn it is; it must be pushed again."""
        self._settle(lane)
        return heapq.heappop(lane.heap)[-1] if lane.heap else None

    def _first(self, lane: _Lane[J]) -> tuple[float, float]:
        self._settle(lane)
        return lane.heap[0][:2]

    def _settle(self, lane: _Lane[J]) -> None:
        """Until the first of the heap is what it says: requests of a client are served in turn."""
        while lane.heap:
            *before, _, waiting = lane.heap[0]
            if waiting not in lane.waiting:
                heapq.heappop(lane.heap)
            elif tuple(before) != self._key(waiting):
                heapq.heappop(lane.heap)
                self._push(lane, waiting)
            else:
                return

    # --- counts ---------------------------------------------------------------------------------

    def _oldest_of(self, lane: _Lane[J]) -> float:
        return next(iter(lane.waiting)).since

    def _count(self, lane: _Lane[J], tokens: int) -> None:
        lane.tokens += tokens
        self.tokens += tokens

    def _leave(self, lane: _Lane[J], waiting: Waiting[J]) -> None:
        del lane.waiting[waiting]
        if not lane.waiting:
            self._lanes.pop(waiting.job.kind, None)
        client = self._clients[waiting.job.client]
        del client.waiting[waiting]
        if not client.waiting:
            del self._clients[waiting.job.client]
