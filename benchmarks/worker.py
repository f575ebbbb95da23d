"""One contender in a process of its own: reads requests from stdin, answers on stdout.

    python -m benchmarks.worker ARTIFACT eager|onnx|onnx@2|torchscript|machine

``onnx@2`` runs two packs at once, as ``esm2-run embed`` does on two cores.

Engines that share a process disturb each other: their thread pools spin on the same cores.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.workload import lengths_of, packs_of, padded_batches_of, random_tokens

Job = Callable[[], Any]
# From the lengths of a batch to something that runs it.
Contender = Callable[[list[int]], Job]


def eager_contender(artifact: Path) -> Contender:
    """fair-esm's own model on a padded batch."""
    import torch

    from exporter.weights import load_original
    from runtime import manifest as manifests

    manifest = manifests.read(artifact)
    model = load_original(artifact, manifest, None).model
    random = np.random.default_rng(0)

    def prepare(lengths: list[int]) -> Job:
        tokens = torch.full((len(lengths), max(lengths)), model.padding_idx)
        for row, length in zip(tokens, lengths, strict=True):
            row[:length] = torch.from_numpy(random_tokens(length, random))

        def job() -> Any:
            with torch.inference_mode():
                return model(tokens, repr_layers=manifest.layers)

        return job

    return prepare


def engine_contender(artifact: Path, name: str, concurrency: int) -> Contender:
    """An engine of the artifact on a pack."""
    import runtime

    engine = runtime.load(artifact, name, device="cpu", concurrency=concurrency)
    random = np.random.default_rng(0)

    def prepare(lengths: list[int]) -> Job:
        batch = runtime.PackedBatch.from_tokens([random_tokens(n, random) for n in lengths])
        return lambda: engine.run(batch)

    return prepare


def timed_run(contender: Contender, batches: list[list[int]], concurrency: int) -> float:
    """Tokens a second over all batches, padding not counted."""
    jobs = [contender(lengths) for lengths in batches]
    jobs[0]()
    with ThreadPoolExecutor(concurrency) as workers:
        started = time.perf_counter()
        list(workers.map(lambda job: job(), jobs))
        return sum(map(sum, batches)) / (time.perf_counter() - started)


def peak_mb() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mb() -> float:
    """Resident memory of this process now."""
    return psutil.Process().memory_info().rss / 2**20


def main() -> None:
    """Serves requests until stdin closes."""
    artifact, name = Path(sys.argv[1]), sys.argv[2]
    if name == "machine":
        from benchmarks.limit import matrix_rate

        answer: Callable[[dict[str, Any]], float] = lambda request: matrix_rate()  # noqa: E731
    else:
        engine, _, suffix = name.partition("@")
        concurrency = int(suffix or 1)
        if engine == "eager":
            contender, split = eager_contender(artifact), padded_batches_of
        else:
            contender, split = engine_contender(artifact, engine, concurrency), packs_of
        loaded_mb = resident_mb()

        def answer(request: dict[str, Any]) -> float:
            if request["what"] == "speed":
                lengths = lengths_of(request["set"], request["tokens"])
                return timed_run(contender, split(lengths, request["max_tokens"]), concurrency)
            if request["what"] == "memory":
                for lengths in split(request["lengths"], request["max_tokens"]):
                    contender(lengths)()
                return peak_mb() - loaded_mb
            return peak_mb()

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
