"""Eager fair-esm's answers ahead of time: in a process of its own, while engines are exported.

Compilers and tracing keep one core busy. The answers go to the cache, where the gate finds them.
When the engines are there, both processes answer, from both ends, until they meet. Each takes half
of the cores: sums depend on the number of threads, and must not on which of them was first.
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
# The float64 models of both processes, and half as much again for all else.
BYTES_A_PARAMETER = 3 * 8


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
    reference: Reference,
    load: Callable[[], Reference],
    packs: Mapping[str, Pack],
    layers: tuple[int, ...],
    pooling: Pool,
    dtypes: Sequence[torch.dtype],
    cache: Cache,
) -> Iterator[None]:
    """While the block runs, a process answers; at the block's end this one answers too.

    Where the process fails, nothing is lost but time.

    Args:
        reference: eager fair-esm in this process.
        load: gives it in the other.
        packs: by name.
        layers: representations to keep.
        pooling: of the last of them.
        dtypes: that eager fair-esm is asked in.
        cache: where the answers go.
    """
    threads = max(1, default_threads() // 2)
    asked = layers, pooling, tuple(dtypes), cache
    task = pickle.dumps((threads, load, dict(packs), *asked))
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
        if process.poll() is None:
            with _threads(threads):
                _answer(reference, dict(reversed(list(packs.items()))), *asked)
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _answer(
    reference: Reference, packs: Mapping[str, Pack], layers: tuple[int, ...], pooling: Pool,
    dtypes: Sequence[torch.dtype], cache: Cache,
) -> None:  # fmt: skip
    for dtype in dtypes:
        run_eager(reference, packs, layers, pooling, dtype, cache)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _answer_who_asked() -> None:
    threads, load, *asked = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_who_asked, daemon=True).start()
    with _threads(threads):
        _answer(load(), *asked)


def _end_with_who_asked() -> None:
    sys.stdin.buffer.read()  # ends when the other end does, however that is
    os._exit(1)


if __name__ == "__main__":
    _answer_who_asked()
    os._exit(0)
