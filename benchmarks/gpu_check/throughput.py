"""Tokens per second of every contender on one model, in turns, and the ceiling of the machine."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_check.answers import compare, noting
from benchmarks.gpu_check.contenders import (
    Contender,
    Packed,
    Padded,
    Proteins,
    Run,
    eager_fair_esm,
    engine_of,
    hugging_face,
)
from benchmarks.gpu_check.gate import artifact_with
from benchmarks.gpu_check.matrix_rate import matrix_rate
from benchmarks.gpu_check.plan import Job
from benchmarks.gpu_check.profiling import kernels_of
from benchmarks.gpu_check.results import Benchmark, Timing
from benchmarks.limit import flops
from benchmarks.peers.serve import random_tokens
from benchmarks.workload import WORKLOADS
from exporter.model.reference import Reference, WeightsSource, load_reference
from runtime.engine import Engine
from runtime.engines.torch.engine import TorchEngine

MIXED = WORKLOADS["mixed"]
# Of the largest pack: two of it are a pass, so that a pack's edges count as they do in a stream.
PACKS_A_PASS = 2
MAX_ROUNDS = 7
# Of packs with and without CUDA graphs: where launches take longer than kernels.
SMALL_PACK = 512
# Padded tokens of a peer's batch: the best of them is taken, as shares of the largest pack.
PEER_SHARES = (1 / 16, 1 / 4, 1)
SEARCH_SHARE = 0.4


def measure(
    job: Job, work: Path, say: Callable[[str], None], so_far: Callable[[Benchmark], None]
) -> Benchmark:
    """Measures ``job.engines`` and the peers; who fails says so and the others go on.

    Args:
        job: of kind ``benchmark``.
        work: where ``run_gate`` put the artifacts.
        say: receives one line for each step.
        so_far: receives what there is after each round.
    """
    started = time.perf_counter()
    reference = load_reference(WeightsSource(job.model.kind, job.model.value))
    lengths = MIXED.draw(PACKS_A_PASS * max(job.pack_tokens))
    random = np.random.default_rng(0)
    proteins = [random_tokens(length, random) for length in lengths]
    rate, product = matrix_rate(job.device)
    result = Benchmark(
        workload=MIXED.description,
        proteins=len(proteins),
        tokens=sum(lengths),
        flops=flops(reference.architecture, lengths, per_exponential=0),
        matrix_rate=rate,
        matrix_product=product,
    )
    with ExitStack() as opened:
        contenders = _contenders(job, reference, work, opened, result)
        prepared = {}
        for contender in contenders:
            say(f"warming up {contender.timing.label}")
            with noting(contender.timing):
                if isinstance(contender, Padded):
                    _search(contender, proteins, job, started)
                prepared[contender.timing.label] = _prepare(contender, proteins)
                _seconds(prepared[contender.timing.label], job.device)
        for number in range(MAX_ROUNDS):
            if number and time.perf_counter() - started > job.seconds:
                break
            say(f"round {number + 1}")
            for contender in contenders:
                timing = contender.timing
                if not timing.problem:
                    with noting(timing):
                        seconds = _seconds(prepared[timing.label], job.device)
                        timing.tokens_s.append(result.tokens / seconds)
            so_far(result)
        compare(contenders, proteins)
        if job.device == "cuda":
            for contender in contenders:
                timing = contender.timing
                if timing.role == "on card" and not timing.problem:
                    say(f"profiling {timing.label}")
                    with noting(timing):
                        timing.kernels = kernels_of(prepared[timing.label][0])
    return result


def _contenders(
    job: Job, reference: Reference, work: Path, opened: ExitStack, result: Benchmark
) -> list[Contender]:
    """Peers first; ``result.timings`` has everybody, also who could not be made."""
    found: list[Contender] = []
    for label, role, make in (
        ("eager fair-esm", "fair-esm", eager_fair_esm),
        ("Hugging Face, SDPA", "hugging face", partial(hugging_face, work=work)),
    ):
        timing = Timing(label, role, "float16")  # type: ignore[arg-type]
        with noting(timing):
            found.append(make(reference, job.device))
            timing = found[-1].timing
        result.timings.append(timing)
    for entry in job.engines:
        name, dtype = entry.split(":")
        timing = Timing(name, "engine", dtype)
        with noting(timing):
            folder = artifact_with(name, job.model.name, dtype, work)
            engine = opened.enter_context(engine_of(folder, name, job.device))
            mine = _of_engine(engine, job.pack_tokens)
            if isinstance(engine, TorchEngine) and job.device == "cuda":
                graphed = opened.enter_context(engine_of(folder, name, job.device, True))
                mine += [
                    Packed(engine, SMALL_PACK, on_card=True),
                    Packed(graphed, SMALL_PACK, on_card=True, note=", CUDA graphs"),
                ]
            found += mine
            result.timings += [contender.timing for contender in mine]
        if timing.problem:
            result.timings.append(timing)
    return found


def _of_engine(engine: Engine, pack_tokens: Sequence[int]) -> list[Contender]:
    found: list[Contender] = []
    for tokens in pack_tokens:
        found.append(Packed(engine, tokens))
        if isinstance(engine, TorchEngine):
            found.append(Packed(engine, tokens, on_card=True))
    return found


def _search(contender: Padded, proteins: Proteins, job: Job, started: float) -> None:
    """Gives a peer its best batch size; a size that does not fit into memory is passed over."""
    timing = contender.timing
    for share in PEER_SHARES:
        late = time.perf_counter() - started > SEARCH_SHARE * job.seconds
        if timing.searched and late:
            break
        timing.max_tokens = int(share * max(job.pack_tokens))
        runs = _prepare(contender, proteins)
        try:
            runs[-1]()  # the longest, so that memory is there
            seconds = _seconds(runs, job.device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        timing.searched[timing.max_tokens] = sum(map(len, proteins)) / seconds
    if not timing.searched:
        raise MemoryError(f"not even {timing.max_tokens:,} tokens a batch fit")
    timing.max_tokens = max(timing.searched, key=lambda tokens: timing.searched[tokens])


def _prepare(contender: Contender, proteins: Proteins) -> list[Run]:
    by_length = defaultdict(list)
    for protein in proteins:
        by_length[len(protein)].append(protein)
    batches = contender.batches_of([len(p) for p in proteins], contender.timing.max_tokens)
    return [contender.prepare([by_length[n].pop() for n in lengths]) for lengths in batches]


def _seconds(runs: Sequence[Run], device: str) -> float:
    """Of all of them, until the card is done."""
    _synchronise(device)
    started = time.perf_counter()
    for run in runs:
        run()
    _synchronise(device)
    return time.perf_counter() - started


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
