"""The artifact in service: loaded, proven on this machine, exchanged for another, drained."""

import asyncio
import logging
import time
from dataclasses import dataclass

from runtime import manifest as manifests
from runtime.concurrency import Stream, choose_packing
from runtime.device import default_max_tokens, least_max_tokens
from runtime.engine import Engine
from runtime.loading import load
from runtime.manifest_schema import Manifest
from runtime.server.metrics import Metrics
from runtime.server.problems import NotReady, Overloaded, TooLarge
from runtime.server.scheduler import Scheduler
from runtime.server.settings import ANSWERS, EngineChoice, Limits
from runtime.server.ticket import Ticket
from runtime.server.work import Values, Work, check_tokens
from runtime.threads import Threads, usable_memory

logger = logging.getLogger(__name__)

# Seconds that a client is told to wait, at most.
LONGEST_RETRY = 60


@dataclass(frozen=True, eq=False)
class Served:
    """An artifact at work, with the packs that wait for it.

    Attributes:
        manifest: of the artifact.
        engine: that runs.
        scheduler: of its packs.
        max_tokens: budget of a pack.
    """

    manifest: Manifest
    engine: Engine
    scheduler: Scheduler
    max_tokens: int


class Service:
    """What the routes ask. All but ``_open`` is of the event loop's thread.

    Args:
        choice: what to load.
        limits: what to refuse.

    Attributes:
        served: in service; None until it has passed its selftest.
        is_draining: no new request is taken.
        accepted: requests that are not answered.
        held_bytes: numbers of their answers.
    """

    def __init__(self, choice: EngineChoice, limits: Limits):
        self.choice = choice
        self.limits = limits
        self.metrics = Metrics()
        self.metrics.queue_limit.set(limits.max_queue_tokens)
        self.served: Served | None = None
        self.is_draining = False
        self.accepted = 0
        self.held_bytes = 0
        self._retired: set[asyncio.Task[None]] = set()
        self._old: list[Scheduler] = []
        self._loading = asyncio.Lock()

    # --- artifacts ------------------------------------------------------------------------------

    async def load(self) -> Served:
        """Loads the artifact anew; what serves goes on until the other has passed its selftest.

        Raises:
            Esm2Error: it cannot be loaded, or is not right here; what served goes on.
        """
        async with self._loading:
            is_first = self.served is None
            try:
                manifest, engine, budget = await asyncio.to_thread(self._open)
            except BaseException:
                if not is_first:
                    self.metrics.reloads.labels("failed").inc()
                raise
            scheduler = Scheduler(engine, budget, self.limits.max_wait, self.metrics)
            before, self.served = self.served, Served(manifest, engine, scheduler, budget)
            self.metrics.ready.set(1)
            self.metrics.engine.info(_labels(self.served))
            if before is not None:
                self.metrics.reloads.labels("done").inc()
                self._retire(before.scheduler)
            spec = engine.spec
            logger.info(
                "serving %s by %s on %s, %s; packs of %d tokens, %d at once; selftest passed",
                spec.artifact, spec.format, spec.device, spec.library, budget, engine.concurrency,
            )  # fmt: skip
            return self.served

    def _open(self) -> tuple[Manifest, Engine, int]:
        choice = self.choice
        # Where a link points to may change while files are read.
        folder = choice.artifact.resolve()
        manifest = manifests.read(folder, check_files=False)
        budget = choice.max_tokens
        at_once = choice.concurrency
        if at_once is None:
            total = Threads.resolve(choice.threads, 1).total
            most = budget or least_max_tokens("cpu")
            width = manifest.architecture.embed_dim
            at_once = choose_packing(total, most, width, Stream(), usable_memory()).concurrency
        engine = load(
            folder, choice.engine, choice.device, choice.attention, choice.threads, at_once,
            validate=True,
        )  # fmt: skip
        return manifest, engine, budget or default_max_tokens(engine.spec)

    def _retire(self, scheduler: Scheduler) -> None:
        async def end() -> None:
            await scheduler.drain()
            self._old.remove(scheduler)
            await asyncio.to_thread(scheduler.close)

        self._old.append(scheduler)
        task = asyncio.get_running_loop().create_task(end())
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    # --- requests -------------------------------------------------------------------------------

    def ready(self) -> Served:
        """What serves. Raises NotReady while it starts or ends."""
        if self.is_draining:
            raise NotReady("the server ends: ask another", retry_after=1)
        if self.served is None:
            raise NotReady("the server starts: its engine is loaded and tested", retry_after=2)
        return self.served

    @property
    def queued_tokens(self) -> int:
        """That wait for an engine, also for one that is being replaced."""
        return sum(each.queued_tokens for each in self._schedulers())

    async def run(self, served: Served, work: Work, ticket: Ticket) -> list[Values]:
        """Runs a request within the limits; its numbers are counted until its ticket ends.

        Raises:
            TooLarge: its answer is too large.
            Overloaded: the queue is full, or answers that are not sent yet take too much.
            Problem: the engine failed.
        """
        ticket.tokens, ticket.sequences = work.num_tokens, len(work.tokens)
        ticket.model = served.manifest.manifest_sha256
        self._check_room(work)
        self._hold(work.num_bytes)
        ticket.at_end.append(lambda: self._hold(-work.num_bytes))
        job = await served.scheduler.run(work, ticket.id)
        self.metrics.waited.observe(job.waited)
        self.metrics.computed.observe(job.computed)
        return job.found()

    def _hold(self, num_bytes: int) -> None:
        self.held_bytes += num_bytes

    def _check_room(self, work: Work) -> None:
        limits, queued = self.limits, self.queued_tokens
        self.metrics.tokens_of_request.observe(work.num_tokens)
        if work.num_bytes > limits.max_answer_bytes:
            raise TooLarge(
                f"the answer would hold {work.num_bytes:,} bytes of numbers, at most "
                f"{limits.max_answer_bytes:,} are given (--max-answer-mb): ask for fewer proteins"
            )
        check_tokens(work.num_tokens, limits)
        if queued + work.num_tokens > limits.max_queue_tokens:
            raise Overloaded(
                f"{queued:,} tokens wait already, of at most {limits.max_queue_tokens:,}",
                retry_after=self._retry_after(work.num_tokens),
            )
        if self.held_bytes + work.num_bytes > ANSWERS * limits.max_answer_bytes:
            raise Overloaded("too many answers are not sent yet", retry_after=1)

    def _retry_after(self, tokens: int) -> int:
        """Seconds until there is room, at the mean rate of what was run."""
        run, seconds = self.metrics.tokens_run, self.metrics.seconds_run
        too_many = self.queued_tokens + tokens - self.limits.max_queue_tokens
        at_once = self.served.engine.concurrency if self.served else 1
        rate = at_once * run / seconds if seconds else 0.0
        return max(1, min(LONGEST_RETRY, round(too_many / rate))) if rate else 1

    def observe(self) -> None:
        """Brings the gauges up to date."""
        self.metrics.queue_size.set(self.accepted)
        self.metrics.queue_tokens.set(self.queued_tokens)
        self.metrics.held_bytes.set(self.held_bytes)
        ages = [each.age_of_oldest for each in self._schedulers()]
        self.metrics.oldest.set(max(ages, default=0.0))

    # --- the end --------------------------------------------------------------------------------

    async def drain(self) -> bool:
        """Takes no more, and waits until all that was accepted is answered.

        Returns:
            Whether it was, within the limit.
        """
        self.is_draining = True
        self.metrics.ready.set(0)
        until = time.monotonic() + self.limits.drain_timeout
        while self.accepted and time.monotonic() < until:
            await asyncio.sleep(0.02)
        left = self.accepted
        for each in self._schedulers():
            each.give_up(NotReady("the server ended before this was run", retry_after=1))
        return left == 0

    def close(self) -> None:
        """Frees the engine; blocks while a pack runs."""
        if self.served is not None:
            self.served.scheduler.close()

    def _schedulers(self) -> list[Scheduler]:
        return [*self._old, *([self.served.scheduler] if self.served else [])]


def _labels(served: Served) -> dict[str, str]:
    spec = served.engine.spec
    return {
        "artifact": spec.artifact, "format": spec.format, "device": spec.device,
        "dtype": spec.dtype, "library": spec.library, "attention": spec.attention,
        "manifest_sha256": served.manifest.manifest_sha256,
    }  # fmt: skip
