"""Eager fair-esm's answers ahead of time: in a process of its own, while engines are exported.

Compilers and tracing keep one core busy. The answers go to the cache, where the gate finds them.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess

import torch

from exporter.model.reference import Reference
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.packs import Pack
from runtime.pooling import Pool
from runtime.threads import default_threads, usable_memory

# A process takes five seconds to begin; of a smaller model the answers take less.
LEAST_PARAMETERS = 5_000_000
# The float64 model beside the float32 one that is exported, and as much again for all else.
BYTES_A_PARAMETER = 2 * (8 + 4)


def is_worth_it(reference: Reference) -> bool:
    """Whether there is a second core, enough memory for a second model, and enough to compute."""
    parameters = sum(parameter.numel() for parameter in reference.model.parameters())
    memory = usable_memory()
    fits = memory is None or BYTES_A_PARAMETER * parameters < memory
    return default_threads() > 1 and parameters >= LEAST_PARAMETERS and fits


@contextmanager
def answered_ahead(
    load: Callable[[], Reference],
    packs: Mapping[str, Pack],
    layers: tuple[int, ...],
    pooling: Pool,
    dtypes: Sequence[torch.dtype],
    cache: Cache,
) -> Iterator[None]:
    """While the block runs, a process answers; the block's end waits for it.

    Where it fails, nothing is lost but time: who asks the cache in vain computes the answers.

    Args:
        load: gives eager fair-esm in that process.
        packs: by name.
        layers: representations to keep.
        pooling: of the last of them.
        dtypes: that eager fair-esm is asked in.
        cache: where the answers go.
    """
    threads = max(1, default_threads() - 1)
    arguments = load, dict(packs), layers, pooling, tuple(dtypes), cache, threads
    process = get_context("spawn").Process(target=_answer, args=arguments, daemon=True)
    process.start()
    try:
        yield
        process.join()
    finally:
        process.kill()
        process.join()


def _answer(
    load: Callable[[], Reference], packs: Mapping[str, Pack], layers: tuple[int, ...],
    pooling: Pool, dtypes: Sequence[torch.dtype], cache: Cache, threads: int,
) -> None:  # fmt: skip
    # Ends with the process that asked, however that ends.
    threading.Thread(target=_end_after, args=(parent_process(),), daemon=True).start()
    # Steps and warnings are that process's to tell.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    torch.set_num_threads(threads)
    reference = load()
    for dtype in dtypes:
        run_eager(reference, packs, layers, pooling, dtype, cache)


def _end_after(process: BaseProcess | None) -> None:
    if process is not None:
        process.join()
    os._exit(1)
