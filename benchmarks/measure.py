"""Measures one artifact: searches, latencies, scaling and rounds, contenders always in turn."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.contenders import Entrant
from benchmarks.correctness import Truth
from benchmarks.limit import flops
from benchmarks.plans import ModelPlan
from benchmarks.processes import DoesNotFitError, Worker, WorkerDiedError
from benchmarks.results import (
    Latency,
    ModelResult,
    Scaling,
    Setting,
    Timing,
    Trial,
    WorkloadResult,
)
from benchmarks.workload import LATENCY_LENGTH, WORKLOADS
from runtime.manifest_schema import Architecture

# The search goes up while a size is at least this share of the best one so far.
WORTH_GOING_ON = 0.85

Say = Callable[[str], None]

LIMIT = partial(Worker, (sys.executable, "-m", "benchmarks.limit"))


class Measurement:
    """Everything of one artifact; ``result`` grows as it goes.

    Args:
        result: to fill.
        plan: what to measure.
        entrants: in the order in which they take their turns.
        truth: for the check after each timing.
        architecture: for the limit.
        cores: that all contenders may use.
        machine: starts what measures the matrix rate.
        say: progress, for people.
    """

    def __init__(
        self,
        result: ModelResult,
        plan: ModelPlan,
        entrants: list[Entrant],
        truth: Truth,
        architecture: Architecture,
        *,
        cores: int,
        machine: Callable[[], Worker] = LIMIT,
        say: Say,
    ):
        self.result = result
        self._plan = plan
        self._truth = truth
        self._cores = cores
        self._machine = machine
        self._say = say
        self._entrants = {e.name: e for e in entrants}
        self._workers: dict[tuple[str, int], Worker] = {}
        self._lengths = {name: WORKLOADS[name].draw(tokens) for name, tokens in plan.tokens.items()}
        result.contenders = {e.name: e.about for e in entrants}
        result.workloads = {
            name: WorkloadResult(
                description=WORKLOADS[name].description,
                proteins=len(lengths),
                tokens=sum(lengths),
                flops=flops(architecture, lengths, plan.per_exponential),
            )
            for name, lengths in self._lengths.items()
        }

    @contextmanager
    def workers(self) -> Iterator[None]:
        """Ends all processes afterwards."""
        try:
            yield
        finally:
            for worker in self._workers.values():
                worker.close()
            self._workers.clear()

    # --- the best setting ---------------------------------------------------------------------

    def search(self) -> None:
        """Finds each contender's best setting: for each workload the batch size.

        How many batches at once is chosen on the first workload, which all share.
        """
        for entrant in self._running():
            if entrant.fixed is not None:
                for workload in self.result.workloads.values():
                    workload.timings[entrant.name] = Timing(entrant.fixed)
                continue
            self._say(f"batch sizes: {entrant.about.label}")
            with self._noting_death(entrant):
                self._search(entrant)

    def _search(self, entrant: Entrant) -> None:
        concurrencies = entrant.concurrencies
        for name, workload in self.result.workloads.items():
            trials: list[Trial] = []
            for concurrency in concurrencies:
                trials += self._ladder(entrant, name, concurrency)
            best = max(trials, key=lambda trial: statistics.median(trial.tokens_s))
            workload.timings[entrant.name] = Timing(best.setting, search=trials)
            if entrant.about.peak_mb is None:
                entrant.about.peak_mb = best.peak_mb
            for concurrency in set(concurrencies) - {best.setting.concurrency, 1}:
                self._workers.pop((entrant.process, concurrency)).close()
            concurrencies = (best.setting.concurrency,)

    def _ladder(self, entrant: Entrant, name: str, concurrency: int) -> list[Trial]:
        """Batch sizes upwards while it is worth it and time is left, then the best two again."""
        worker = self._worker(entrant, concurrency)
        lengths = WORKLOADS[name].draw(self._plan.search_tokens)
        until = time.perf_counter() + self._plan.search_s
        seen: list[list[list[int]]] = []
        trials: list[Trial] = []
        for size in self._plan.sizes:
            batches = entrant.batches_of(lengths, size)
            if batches in seen:
                continue
            seen.append(batches)
            try:
                rate = self._rate(worker, batches)
            except DoesNotFitError:
                if not trials:
                    raise
                break
            peak_mb = worker.ask("peak")["peak_mb"]
            trials.append(Trial(Setting(concurrency, size), [rate], peak_mb))
            worth_it = rate >= WORTH_GOING_ON * max(trial.tokens_s[0] for trial in trials)
            if not worth_it or time.perf_counter() > until:
                break
        trials_by_rate = sorted(trials, key=lambda trial: -trial.tokens_s[0])
        for trial in trials_by_rate[:2] if len(trials) > 1 else []:
            if time.perf_counter() > until:
                break
            batches = entrant.batches_of(lengths, trial.setting.max_tokens)
            trial.tokens_s.append(self._rate(worker, batches, again=True))
        return trials

    # --- one protein, one thread --------------------------------------------------------------

    def latency(self) -> None:
        """Of one protein, on all cores; engines that share the cores among packs have none."""
        latency = self.result.latency = Latency(LATENCY_LENGTH)
        self._say("latency of one protein")
        for _ in range(3):
            for entrant in self._running():
                if 1 in entrant.concurrencies and entrant.fixed is None:
                    with self._noting_death(entrant):
                        worker = self._worker(entrant, 1)
                        runs = worker.ask(
                            "latency", length=LATENCY_LENGTH, repeats=self._plan.latency_runs
                        )["latencies_ms"]
                        latency.runs_ms.setdefault(entrant.name, []).extend(runs)

    def scaling(self) -> None:
        """The mixed workload with one thread, and in the same moment with all cores."""
        lengths = WORKLOADS["mixed"].draw(self._plan.search_tokens)
        for entrant in self._running():
            if entrant.fixed is not None:
                continue
            self._say(f"one thread: {entrant.about.label}")
            timing = self.result.workloads["mixed"].timings[entrant.name]
            batches = entrant.batches_of(lengths, timing.setting.max_tokens)
            with self._noting_death(entrant), entrant.start(1, 1) as alone:
                scaling = self.result.scaling[entrant.name] = Scaling()
                for _ in range(2):
                    for rates, worker in (
                        (scaling.one_thread, alone),
                        (scaling.all_cores, self._worker(entrant, timing.setting.concurrency)),
                    ):
                        rates.append(self._rate(worker, batches))

    # --- rounds -------------------------------------------------------------------------------

    def rounds(self, deadline: float) -> None:
        """Every contender on every workload, in turn; each timing is followed by the check.

        Args:
            deadline: on ``time.perf_counter``; after the least number of rounds no round is begun
                that would pass it.
        """
        least, most = self._plan.rounds
        took = 0.0
        with self._machine() as machine:
            self.result.matrix_product = machine.started["product"]
            for number in range(most):
                started = time.perf_counter()
                if number >= least and started + took > deadline:
                    break
                self._say(f"round {number + 1}")
                self._round(machine, number)
                took = time.perf_counter() - started

    def _round(self, machine: Worker, number: int) -> None:
        for name, workload in self.result.workloads.items():
            workload.matrix_rate.append(machine.ask("rate")["matrix_rate"])
            running = list(self._running())
            for entrant in reversed(running) if number % 2 else running:
                timing = workload.timings[entrant.name]
                batches = entrant.batches_of(self._lengths[name], timing.setting.max_tokens)
                with self._noting_death(entrant):
                    worker = self._worker(entrant, timing.setting.concurrency)
                    timing.tokens_s.append(self._rate(worker, batches, again=number > 0))
                    timing.relative_l2.append(self._truth.error_of(worker))

    def _rate(self, worker: Worker, batches: list[list[int]], again: bool = False) -> float:
        """Tokens/s."""
        warm = self._plan.warm and not again
        seconds = worker.ask("time", batches=batches, warm=warm)["seconds"]
        return sum(map(sum, batches)) / seconds

    # --- processes ----------------------------------------------------------------------------

    def _running(self) -> Iterator[Entrant]:
        return (e for e in list(self._entrants.values()) if not e.about.not_run)

    def _worker(self, entrant: Entrant, concurrency: int) -> Worker:
        """The contender's process; the first one's start is what is reported."""
        key = (entrant.process, concurrency)
        if key not in self._workers:
            worker = self._workers[key] = entrant.start(self._cores, concurrency)
            if entrant.about.load_s is None:
                entrant.about.load_s = worker.started["load_s"]
                self._truth.error_of(worker)
                entrant.about.first_embedding_s = worker.age_s
        return self._workers[key]

    @contextmanager
    def _noting_death(self, entrant: Entrant) -> Iterator[None]:
        """A contender that dies is out, with its last words; the others go on."""
        try:
            yield
        except WorkerDiedError as error:
            entrant.about.not_run = str(error)
            for key in [key for key in self._workers if key[0] == entrant.process]:
                self._workers.pop(key).close()
