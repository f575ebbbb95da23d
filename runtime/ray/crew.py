"""The actors that live: who is free, who was lost, who comes in their place.

A call goes to a free actor. Where the actor dies under it, or its node goes, it goes to another,
and a new actor is asked for meanwhile: nothing waits for a node that may never come back.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from threading import Condition, Lock
from typing import Any

from runtime.background import in_background
from runtime.engines.base import PACKS_OF_A_CARD
from runtime.errors import EngineError, cause
from runtime.ray.artifact import Files, Shipped
from runtime.ray.worker import Description, Loading, Worker

logger = logging.getLogger(__name__)

# Packs that are with an actor beside those that it runs: it never waits for the next.
IN_STORE = 1
# Actors that may die under one call, or one after the other while they load.
TRIES = 4
# After the first, at the start; later ones join when they come.
GATHERING_SECONDS = 60.0
# At the start, until it is said that none has come.
SILENT_SECONDS = 30.0
# Without any actor, before the run ends; a cluster that grows takes minutes.
PATIENCE_SECONDS = 600.0
# How soon a waiting thread sees that all has ended, and how long that is waited for.
_LOOK_SECONDS = 0.5
_CLOSING_SECONDS = 10.0
_RETRY_SECONDS = 1.0


class ActorLostError(Exception):
    """An actor died, its node went, or its answer was lost with the node."""


class Member:
    """An actor that has loaded its engine."""

    def __init__(self, handle: Any, description: Description):
        self.handle = handle
        self.description = description
        self.is_lost = False


class Crew:
    """Actors with an engine each.

    Args:
        shipped: the artifact.
        loading: what each loads.
        actors: that are wanted.
        resources: of each, as Ray's ``options`` take them.
        put_files: puts the artifact into the object store; called at most once, for nodes that do
            not have it.

    Raises:
        EngineError: an actor cannot load its engine, none came in ``PATIENCE_SECONDS``, or two of
            them differ.
        Esm2Error: others that ``runtime.load`` raises.
    """

    def __init__(
        self, shipped: Shipped, loading: Loading, actors: int, resources: dict[str, float],
        put_files: Callable[[], Files],
    ):  # fmt: skip
        import ray

        self._ray = ray
        self._shipped = shipped
        self._loading = loading
        self._resources = resources
        self._put_files = put_files
        self._files: Files | None = None
        self._files_lock = Lock()
        self._lock = Lock()
        self._members: list[Member] = []
        self._coming = 0
        self._free: SimpleQueue[Member] = SimpleQueue()
        self._is_closed = False
        self._at_rest = Condition()
        self._at_work = 0
        self._last_failure = "none was placed"
        try:
            self._gather(actors)
        except BaseException:
            self.close()
            raise

    @property
    def description(self) -> Description:
        """Of the first actor; all others are as it is."""
        return self._members[0].description

    @property
    def max_tokens(self) -> int:
        """The budget of a pack that every actor takes by itself: cards may differ."""
        with self._lock:
            return min(member.description.max_tokens for member in self._members)

    @property
    def size(self) -> int:
        """Actors that live."""
        with self._lock:
            return self._living()

    def _living(self) -> int:
        return sum(not member.is_lost for member in self._members)

    def call(self, method: str, *arguments: object) -> Any:
        """Calls a method of ``Worker`` at one of the actors, again where it is lost.

        Raises:
            EngineError: ``TRIES`` actors died under it, or there are none.
            Exception: what the method raised.
        """
        for _ in range(TRIES):
            with self._working():
                member = self._borrow()
                try:
                    return self._answer(getattr(member.handle, method).remote(*arguments))
                except ActorLostError as lost:
                    why = lost
                    self._replace(member, str(lost))
                finally:
                    self._free.put(member)  # one that is lost is passed over there
        raise EngineError(
            f"{TRIES} actors died one after the other under the same pack, the last: {why}. If it "
            "was for memory, give a smaller --max-tokens"
        )

    def close(self) -> None:
        """Ends all actors; afterwards no thread of this speaks to Ray.

        One that did when the process has left the cluster would connect it anew: Ray does so by
        itself.
        """
        self._is_closed = True
        with self._lock:
            members, self._members = self._members, self._members[:1]
        for member in members:
            self._end(member.handle)
        with self._at_rest:
            self._at_rest.wait_for(lambda: not self._at_work, _CLOSING_SECONDS)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Raises EngineError when all has ended."""
        with self._at_rest:
            self._require_open()
            self._at_work += 1
        try:
            yield
        finally:
            with self._at_rest:
                self._at_work -= 1
                self._at_rest.notify_all()

    def _require_open(self) -> None:
        if self._is_closed:
            raise EngineError("this engine is closed: load it again")

    def _gather(self, actors: int) -> None:
        begun = time.monotonic()
        self._coming = actors
        hires = [in_background(self._loaded) for _ in range(actors)]
        waiting = set(hires)
        first_at: float | None = None
        is_told = False
        while waiting:
            done, waiting = wait(waiting, _LOOK_SECONDS, FIRST_COMPLETED)
            for hire in done:
                self._join(hire.result(), is_start=True)
            now = time.monotonic()
            if done and first_at is None:
                first_at = now
            if first_at is None and now - begun > PATIENCE_SECONDS:
                raise EngineError(
                    f"Ray placed none of {actors} actors in {PATIENCE_SECONDS:.0f} s, each wants "
                    f"{self._wants()}. See 'ray status' for what the cluster has free"
                )
            if first_at is None and not is_told and now - begun > SILENT_SECONDS:
                is_told = True
                logger.warning(
                    "no actor has a place and its engine yet, each wants %s. See 'ray status' for "
                    "what the cluster has free", self._wants(),
                )  # fmt: skip
            if first_at is not None and now - first_at > GATHERING_SECONDS:
                break
        if waiting:
            logger.warning(
                "%d of %d actors have no place yet, each wants %s: they join when they get one",
                len(waiting), actors, self._wants(),
            )  # fmt: skip
        for hire in waiting:
            hire.add_done_callback(self._join_later)

    def _loaded(self) -> Member:
        """A new actor, once it has loaded; waits for its place as long as the run lasts."""
        with self._working():
            return self._loaded_at_last()

    def _loaded_at_last(self) -> Member:
        for attempt in range(1, TRIES + 1):
            handle = self._made()
            try:
                needs_files = self._answer(handle.needs.remote(self._shipped))
                files = self._shared_files() if needs_files else None
                answer = handle.load.remote(self._shipped, files, self._loading)
                return Member(handle, self._answer(answer))
            except ActorLostError as lost:
                self._end(handle)
                if attempt == TRIES or self._is_closed:
                    raise EngineError(f"no actor could be started: {lost}") from None
                time.sleep(_RETRY_SECONDS)
            except BaseException:
                self._end(handle)
                raise
        raise AssertionError("unreachable")

    def _made(self) -> Any:
        # A thread more than the engine takes packs: see Worker.
        on_cpu = self._loading.device == "cpu"
        packs = self._loading.concurrency if on_cpu else PACKS_OF_A_CARD
        threads = packs + IN_STORE
        return self._ray.remote(Worker).options(max_concurrency=threads, **self._resources).remote()

    def _shared_files(self) -> Files:
        with self._files_lock:
            if self._files is None:
                self._files = self._put_files()
            return self._files

    def _join(self, member: Member, is_start: bool = False) -> None:
        with self._lock:
            self._coming -= 1
            first = self._members[0].description if self._members else None
            differences = member.description.differences(first) if first else []
            joins = not differences and not self._is_closed
            if joins:
                self._members.append(member)
        if not joins:
            self._end(member.handle)
        if differences:
            said = f"actors of one run must give the same numbers: {'; '.join(differences)}"
            if is_start:
                raise EngineError(
                    f"{said}. Install the same on each node, or name what runs with --engine, "
                    "--device and --attention"
                )
            logger.warning("%s. The one that came later is not used", said)
        if joins:
            for _ in range(member.description.concurrency + IN_STORE):
                self._free.put(member)

    def _join_later(self, hire: "Future[Member]") -> None:
        error = hire.exception()
        if error is None:
            self._join(hire.result())
            return
        with self._lock:
            self._coming -= 1
            self._last_failure = str(error)
        if not self._is_closed:
            logger.warning("an actor that was to come did not: %s", error)

    def _replace(self, member: Member, why: str) -> None:
        """Once for each that is lost, however many packs it had."""
        with self._lock:
            if member.is_lost:
                return
            member.is_lost = True
            self._last_failure = why
            if self._is_closed:
                return
            # Together with the loss: nobody may see that none lives and none comes.
            self._coming += 1
        logger.warning(
            "an actor on %s is lost (%s). Its packs go to others, of which there are %d, and a new "
            "one is asked for", member.description.host, why, self.size,
        )  # fmt: skip
        self._end(member.handle)  # should it live, and only its node be out of reach
        in_background(self._loaded).add_done_callback(self._join_later)

    def _borrow(self) -> Member:
        alone_since = time.monotonic()
        while True:
            self._require_open()
            with suppress(Empty):
                member = self._free.get(timeout=_LOOK_SECONDS)
                if not member.is_lost:
                    return member
                continue
            now = time.monotonic()
            with self._lock:
                living, coming = self._living(), self._coming
            if living:
                alone_since = now
            elif not coming or now - alone_since > PATIENCE_SECONDS:
                raise EngineError(f"no actor is left: {self._last_failure}")

    def _answer(self, reference: Any) -> Any:
        """What a call came to; its own exception where it raised one."""
        from ray import exceptions as of_ray

        while True:
            try:
                return self._ray.get(reference, timeout=_LOOK_SECONDS)
            except of_ray.GetTimeoutError:
                self._require_open()
            except of_ray.RayTaskError as error:
                raise _own(error) from None
            except of_ray.RayError as error:
                # Of the actor, its node, or its answer's: all of them are gone with it.
                raise ActorLostError(_in_a_line(error)) from None

    def _end(self, handle: Any) -> None:
        with suppress(Exception):  # it is gone, or the cluster is
            self._ray.kill(handle)

    def _wants(self) -> str:
        names = {"num_cpus": "CPU", "num_gpus": "GPU"}
        return " and ".join(
            f"{count:g} {names[what]}{'s' * (count > 1)}" for what, count in self._resources.items()
        )


def _own(error: Any) -> BaseException:
    """The exception that was raised at the actor."""
    raised = error.cause
    if isinstance(raised, Exception):
        return raised
    return EngineError(f"an actor failed: {cause(error)}")


def _in_a_line(error: Exception) -> str:
    """The first sentence of what Ray says in paragraphs."""
    said = str(error)
    detail = said.partition("Worker exit detail: ")[2] or said
    return cause(Exception(detail)).split(". ")[0].rstrip(".")
