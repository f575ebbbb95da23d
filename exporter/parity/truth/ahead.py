"""Eager fair-esm's answers ahead of time: in a process of its own, while engines are exported.

Compilers and tracing keep one core busy. The answers go to the cache, where the gate finds them.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from exporter.model.reference import Reference
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.packs import Pack
from runtime.pooling import Pool
from runtime.threads import default_threads, usable_memory

# A process takes five seconds to begin; of a smaller model the answers take less.
LEAST_PARAMETERS = 5_000_000
# Scores of long proteins take hundreds of MB, several times a layer. By glibc's defaults each goes
# back to the system and comes again page by page, which is a third of the time.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}
# The float64 model beside the float32 one that is exported, and as much again for all else.
BYTES_A_PARAMETER = 2 * (8 + 4)


def is_worth_it(
    reference: Reference, packs: Mapping[str, Pack], layers: Sequence[int], cache: Cache
) -> bool:
    """Whether there is a second core, memory and disk for it, and enough to compute."""
    parameters = sum(parameter.numel() for parameter in reference.model.parameters())
    architecture = reference.architecture
    tokens = sum(len(protein.sequence) + 2 for pack in packs.values() for protein in set(pack))
    width = architecture.vocab_size + len(layers) * architecture.embed_dim
    # In float64 and in the artifact's dtype, of which float32 is the widest.
    answers = tokens * width * (8 + 4)
    memory = usable_memory()
    fits = memory is None or BYTES_A_PARAMETER * parameters + 2 * answers < memory
    worth_it = default_threads() > 1 and parameters >= LEAST_PARAMETERS
    return worth_it and fits and cache.has_room(answers)


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
    task = pickle.dumps((load, dict(packs), layers, pooling, tuple(dtypes), cache, threads))
    # No multiprocessing: it runs the caller's own script again, and daemons may not have children.
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **KEEP_MEMORY},
    )
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(task)
            process.stdin.flush()
        yield
        process.wait()
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _answer() -> None:
    load, packs, layers, pooling, dtypes, cache, threads = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_who_asked, daemon=True).start()
    torch.set_num_threads(threads)
    reference = load()
    for dtype in dtypes:
        run_eager(reference, packs, layers, pooling, dtype, cache)


def _end_with_who_asked() -> None:
    sys.stdin.buffer.read()  # ends when the other end does, however that is
    os._exit(1)


if __name__ == "__main__":
    _answer()
    os._exit(0)
