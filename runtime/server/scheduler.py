"""Cuts packs of what waits and runs them: one thread a pack, the event loop never computes."""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from runtime.engine import Engine, require_supported
from runtime.errors import Esm2Error, NonFiniteError, OutOfMemoryError, UnsupportedError
from runtime.packing import PackedBatch
from runtime.server.fair_queue import FairQueue, Member, Waiting
from runtime.server.metrics import Metrics
from runtime.server.problems import Failed, Malformed, Problem
from runtime.server.work import Kind, Tokens, Values, Work

logger = logging.getLogger(__name__)

# Seconds between two looks at whether an old artifact is still in use.
_DRAIN_EACH = 0.02


@dataclass(eq=False)
class Job:
    """A request in the queue; see ``fair_queue.Asked``.

    Attributes:
        work: what is run.
        id: of the request, for logs.
        values: of each sequence, as they come.
        done: set when all are there, or one failed.
        waited: seconds until the last of it was given to an engine.
        computed: seconds that engines took for packs with a part of it.
        left: sequences without values.
    """

    work: Work
    id: str
    values: list[Values | None]
    done: "asyncio.Future[None]"
    waited: float = 0.0
    computed: float = 0.0
    left: int = 0

    def found(self) -> list[Values]:
        """The values, once ``done``."""
        assert self.left == 0
        return self.values  # type: ignore[return-value]

    @property
    def client(self) -> str:  # noqa: D102
        return self.work.client

    @property
    def kind(self) -> Kind:  # noqa: D102
        return self.work.kind

    @property
    def tokens(self) -> Sequence[Tokens]:  # noqa: D102
        return self.work.tokens


@dataclass
class _Pack:
    members: list[Member[Job]]
    kind: Kind
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_tokens = sum(len(member.tokens) for member in self.members)


class Scheduler:
    """Packs for one engine. All but ``_run`` is of the event loop's thread.

    Args:
        engine: as many packs run at once as it takes.
        max_tokens: budget of a pack.
        max_wait: seconds that a pack waits to be filled.
        metrics: that are kept.
    """

    def __init__(self, engine: Engine, max_tokens: int, max_wait: float, metrics: Metrics):
        self._engine = engine
        self._max_tokens = max_tokens
        self._max_wait = max_wait
        self._metrics = metrics
        self._at_once = engine.concurrency
        # A card runs one pack at a time, however many are on their way.
        self._side_by_side = self._at_once if engine.spec.device == "cpu" else 1
        self._queue: FairQueue[Job] = FairQueue(max_tokens, self._side_by_side)
        self._ready: deque[_Pack] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._jobs: set[Job] = set()
        self._users = 0
        self._threads = ThreadPoolExecutor(self._at_once, "esm2-engine")
        self._timer: asyncio.TimerHandle | None = None

    @property
    def queued_tokens(self) -> int:
        """That wait for an engine."""
        return self._queue.tokens + sum(pack.num_tokens for pack in self._ready)

    @property
    def age_of_oldest(self) -> float:
        """Seconds that the oldest request waits, 0 where none does."""
        times = [member.waiting.since for pack in self._ready for member in pack.members]
        if (oldest := self._queue.oldest()) is not None:
            times.append(oldest)
        return time.monotonic() - min(times) if times else 0.0

    async def run(self, work: Work, id_: str) -> Job:
        """Runs a request; cancelled, what of it no engine has begun is left out.

        Raises:
            Problem: the engine failed on one of its sequences.
        """
        job = Job(
            work, id_, [None] * len(work.tokens), asyncio.get_running_loop().create_future(),
            left=len(work.tokens),
        )  # fmt: skip
        waiting = self._queue.put(job, time.monotonic())
        self._jobs.add(job)
        self._dispatch()
        try:
            await job.done
        finally:
            self._jobs.discard(job)
            self._queue.remove(waiting)
        return job

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, ``drain`` does not end."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    async def drain(self) -> None:
        """Waits until nothing uses it, runs or waits."""
        while self._users or self._running or self._ready or self._queue.tokens:
            if self._running:
                await asyncio.wait(self._running)
            else:
                await asyncio.sleep(_DRAIN_EACH)

    def give_up(self, problem: Problem) -> None:
        """Tells all who wait that there will be no answer."""
        for job in self._jobs:
            if not job.done.done():
                job.done.set_exception(problem)

    def close(self) -> None:
        """Ends the threads; what they run is waited for. Blocks."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._engine.close()

    # --- packs ----------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while (idle := self._at_once - len(self._running)) > 0:
            if not self._ready:
                # What only stands behind a running pack is worth it when it is full.
                has_place = len(self._running) < self._side_by_side
                patience = self._max_wait if has_place else math.inf
                idle = min(idle, self._side_by_side)
                packs = self._queue.cut(time.monotonic(), patience, idle)
                self._ready.extend(_Pack(each, each[0].waiting.job.kind) for each in packs)
            if not self._ready:
                break
            pack = self._ready.popleft()
            pack.members = [each for each in pack.members if not each.waiting.is_cancelled]
            if pack.members:
                task = asyncio.get_running_loop().create_task(self._through(pack))
                self._running.add(task)
                task.add_done_callback(self._ended)
        if len(self._running) < self._side_by_side and (oldest := self._queue.oldest()) is not None:
            wait = max(0.0, oldest + self._max_wait - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait, self._dispatch)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._dispatch()

    async def _through(self, pack: _Pack) -> None:
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        outcomes: list[Values | Problem]
        try:
            outcomes = await loop.run_in_executor(self._threads, self._run, pack.members, pack.kind)
        except Exception as error:  # such as of a server that was closed: nobody waits in vain
            outcomes = [_failed(pack.members, error)] * len(pack.members)
        took = time.monotonic() - began
        self._metrics.of_pack(pack.num_tokens, len(pack.members), self._max_tokens, took)
        for job in {member.waiting.job: None for member in pack.members}:
            job.computed += took
        for member, outcome in zip(pack.members, outcomes, strict=True):
            _settle(member.waiting, member.place, outcome, began)

    def _run(self, members: list[Member[Job]], kind: Kind) -> "list[Values | Problem]":
        """In a thread of the engine: the values of each member, or why there are none."""
        try:
            batch = PackedBatch.from_tokens([member.tokens for member in members])
            require_supported(self._engine, batch)
            return list(kind.of_pack(self._engine, batch))
        except NonFiniteError as error:
            # Of one request, perhaps: others in the pack do not fail with it.
            jobs = {member.waiting.job: None for member in members}
            if len(jobs) > 1:
                return self._one_by_one(members, kind)
            return [_failed(members, error)] * len(members)
        except Exception as error:
            return [_failed(members, error)] * len(members)

    def _one_by_one(self, members: list[Member[Job]], kind: Kind) -> "list[Values | Problem]":
        found: dict[tuple[int, int], Values | Problem] = {}
        of_job: dict[Job, list[Member[Job]]] = {}
        for member in members:
            of_job.setdefault(member.waiting.job, []).append(member)
        for own in of_job.values():
            for member, outcome in zip(own, self._run(own, kind), strict=True):
                found[id(member.waiting), member.place] = outcome
        return [found[id(member.waiting), member.place] for member in members]


def _settle(waiting: "Waiting[Job]", place: int, outcome: "Values | Problem", began: float) -> None:
    job = waiting.job
    if job.done.done():
        return
    if isinstance(outcome, Problem):
        job.done.set_exception(outcome)
        return
    job.values[place] = outcome
    job.waited = began - waiting.since
    job.left -= 1
    if job.left == 0:
        job.done.set_result(None)


def _failed(members: list[Member[Job]], error: Exception) -> Problem:
    """What clients are told; the log says the rest, with the ids of the requests."""
    ids = ", ".join({member.waiting.job.id: None for member in members})
    logger.error(
        "a pack of %d sequences failed, of requests %s: %s", len(members), ids, error,
        exc_info=None if isinstance(error, Esm2Error) else error,
    )  # fmt: skip
    if isinstance(error, UnsupportedError):
        return Malformed(str(error))
    if isinstance(error, NonFiniteError):
        return Failed("the engine returned NaN or Inf. Half precision may overflow")
    if isinstance(error, (OutOfMemoryError, MemoryError)):
        return Failed("out of memory. Send fewer, or shorter, proteins")
    return Failed("the engine failed on a pack with a part of this request")
