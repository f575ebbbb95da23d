"""One contender in a process of its own: requests on stdin, answers on stdout, one JSON a line.

    python benchmarks/peers/serve.py PEER FOLDER THREADS CONCURRENCY

Runs in the peer's environment: the standard library and NumPy alone.

| request | answer |
|---|---|
| none, at start | ``load_s``, ``versions``, ``concurrency``, ``instructions`` |
| ``time``: ``batches`` of lengths, ``warm`` | ``seconds`` for all of them |
| ``latency``: ``length``, ``repeats`` | ``latencies_ms`` |
| ``answer``: ``proteins`` of token ids, ``path`` | last layer's rows of all, written to ``path`` |
| ``logits``, of a packed peer: as ``answer`` | ``[T, 33]``, written to ``path`` |
| ``peak`` | ``peak_mb`` of this process since its start |
"""

import importlib
import importlib.metadata
import json
import os
import queue
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

BOS, PAD, EOS = 0, 1, 2
COMMON = range(4, 24)


class PaddedPeer:
    """A peer's ``run`` on padded batches, one copy of the model for each concurrent batch."""

    def __init__(self, name, folder, threads, concurrency):
        module = importlib.import_module(name)
        self.packages = module.PACKAGES
        self.concurrency = concurrency
        self._models = queue.SimpleQueue()
        for _ in range(concurrency):
            self._models.put(module.load(folder, threads))

    def prepare(self, proteins):
        """From token ids of a batch to something that runs it and returns ``[N, L, E]``."""
        width = max(map(len, proteins))
        input_ids = np.full((len(proteins), width), PAD, dtype=np.int64)
        for row, protein in zip(input_ids, proteins, strict=True):
            row[: len(protein)] = protein
        attention_mask = (input_ids != PAD).astype(np.int64)

        def job():
            model = self._models.get()
            try:
                return model(input_ids, attention_mask)
            finally:
                self._models.put(model)

        return job

    def finish(self):
        """Waits until all jobs are done; here they are when they return."""

    def rows(self, result, proteins):
        """``[T, E]`` of what a job returned."""
        return np.concatenate(
            [rows[: len(protein)] for rows, protein in zip(result, proteins, strict=True)]
        )


class PackedPeer:
    """A peer that takes proteins of any lengths at once, and shares the cores among them itself."""

    def __init__(self, module, folder, threads):
        self.packages = module.PACKAGES
        self.concurrency = 1
        self._model = module.load_packed(folder, threads)
        self.instructions = self._model.instructions

    def prepare(self, proteins):
        """From token ids of a batch to something that runs it."""
        proteins = [protein.astype(np.int32) for protein in proteins]
        return lambda: self._model.run(proteins)

    def finish(self):
        """All is done when a job returns."""

    def rows(self, result, proteins):
        """``[T, E]`` of the last layer, which is not what a job returned."""
        return self._model.rows([protein.astype(np.int32) for protein in proteins])


def peer_of(name, folder, threads, concurrency):
    """Whichever of the two the peer's module is for."""
    module = importlib.import_module(name)
    if hasattr(module, "load_packed"):
        return PackedPeer(module, folder, threads)
    return PaddedPeer(name, folder, threads, concurrency)


def serve(load):
    """Loads with ``load()`` and answers until stdin closes; prints of the model go to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields):
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    started = time.perf_counter()
    contender = load()
    load_s = time.perf_counter() - started
    versions = {name: importlib.metadata.version(name) for name in contender.packages}
    answer(
        load_s=load_s,
        versions=versions,
        concurrency=contender.concurrency,
        instructions=getattr(contender, "instructions", ""),
    )
    for line in sys.stdin:
        request = json.loads(line)
        answer(**REQUESTS[request.pop("what")](contender, **request))


def timed(contender, batches, warm=False):
    """Runs every batch; making them and a run of the smallest, or of all, are not timed before."""
    random = np.random.default_rng(0)
    if contender.concurrency > 1:
        # The largest last would leave the other cores idle.
        batches = sorted(batches, key=sum, reverse=True)
    jobs = [
        contender.prepare([random_tokens(length, random) for length in lengths])
        for lengths in batches
    ]
    smallest = min(range(len(jobs)), key=lambda place: sum(batches[place]))
    for job in jobs if warm else [jobs[smallest]] * contender.concurrency:
        job()
    contender.finish()
    if contender.concurrency == 1:
        started = time.perf_counter()
        for job in jobs:
            job()
        contender.finish()
        return {"seconds": time.perf_counter() - started}
    with ThreadPoolExecutor(contender.concurrency) as workers:
        started = time.perf_counter()
        list(workers.map(lambda job: job(), jobs))
        return {"seconds": time.perf_counter() - started}


def latency(contender, length, repeats):
    """One protein at a time."""
    job = contender.prepare([random_tokens(length, np.random.default_rng(0))])
    job()
    contender.finish()
    latencies_ms = []
    for _ in range(repeats):
        started = time.perf_counter()
        job()
        contender.finish()
        latencies_ms.append(1000 * (time.perf_counter() - started))
    return {"latencies_ms": latencies_ms}


def answered(contender, proteins, path):
    """What the contender says of proteins whose truth is known, as one batch."""
    tokens = [np.array(protein, dtype=np.int64) for protein in proteins]
    np.save(path, contender.rows(contender.prepare(tokens)(), tokens))
    return {}


def logits(contender, proteins, path):
    """What a packed peer's jobs give."""
    tokens = [np.array(protein, dtype=np.int64) for protein in proteins]
    np.save(path, np.concatenate(contender.prepare(tokens)()))
    return {}


def peak(contender):
    """Not ``ru_maxrss`` on Linux: a process starts with its parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return {"peak_mb": int(line.split()[1]) / 1024}
    unit = 2**20 if sys.platform == "darwin" else 1024
    return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}


def random_tokens(length, random):
    """BOS, common residues, EOS: ``[length]`` int64."""
    tokens = random.integers(COMMON.start, COMMON.stop, length)
    tokens[[0, -1]] = BOS, EOS
    return tokens


REQUESTS = {
    "time": timed,
    "latency": latency,
    "answer": answered,
    "logits": logits,
    "peak": peak,
}


if __name__ == "__main__":
    _name, _folder, _threads, _concurrency = sys.argv[1:]
    serve(lambda: peer_of(_name, Path(_folder), int(_threads), int(_concurrency)))
