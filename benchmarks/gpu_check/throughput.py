"""Tokens per second of every contender on one model, in turns, and the ceiling of the machine."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.correctness import Truth
from benchmarks.gpu_check.contenders import entrants_of
from benchmarks.gpu_check.matrix_rate import CardLimit
from benchmarks.gpu_check.plan import Job
from benchmarks.measure import LIMIT, Measurement
from benchmarks.plans import on_a_card
from benchmarks.processes import WorkerDiedError
from benchmarks.results import ModelResult
from benchmarks.workload import WORKLOADS
from exporter.model.reference import WeightsSource, load_reference
from exporter.parity.truth.cache import Cache

# Of a benchmark's time, for the batch sizes of all contenders.
SEARCH_SHARE = 0.4
# On a card; a rehearsal shows that one follows another.
MOST_ROUNDS, REHEARSED_ROUNDS = 7, 2


def measure(
    job: Job, work: Path, say: Callable[[str], None], so_far: Callable[[ModelResult], None]
) -> ModelResult:
    """Measures ``job.engines`` and the peers; who fails says so and the others go on.

    Args:
        job: of kind ``benchmark``.
        work: where ``run_gate`` put the artifacts.
        say: receives one line for each step.
        so_far: receives what there is, before each step.
    """
    deadline = time.perf_counter() + job.seconds
    reference = load_reference(WeightsSource(job.model.kind, job.model.value))
    architecture = reference.architecture
    result = ModelResult(job.model.name, architecture.name, job.model.kind == "synthetic")
    truth = Truth(reference, Cache(work / "answers"))

    def tell(line: str) -> None:
        say(line)
        so_far(result)

    with ExitStack() as opened:
        entrants = entrants_of(job, reference, work, opened)
        search_s = SEARCH_SHARE * job.seconds / len(entrants)
        on_cuda = job.device == "cuda"
        plan = on_a_card(job.pack_tokens, search_s, MOST_ROUNDS if on_cuda else REHEARSED_ROUNDS)
        machine = CardLimit if on_cuda else LIMIT
        measurement = Measurement(
            result, plan, entrants, truth, architecture, cores=1, machine=machine, say=tell
        )
        with measurement.workers():
            measurement.search()
            measurement.latency()
            measurement.rounds(deadline)
        if not on_cuda:
            return result
        for entrant in entrants:
            if entrant.about.not_run or entrant.about.kind != "engine":
                continue
            tell(f"profiling {entrant.about.label}")
            setting = result.workloads["mixed"].timings[entrant.name].setting
            lengths = WORKLOADS["mixed"].draw(plan.search_tokens)
            batch = entrant.batches_of(lengths, setting.max_tokens)[0]
            try:
                with entrant.start(1, 1) as worker:
                    entrant.about.kernels = worker.ask("kernels", lengths=batch)["kernels"]
            except WorkerDiedError as error:
                tell(f"no profile: {error}")
    return result
