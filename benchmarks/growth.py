"""Growth of cost: streams of more and more proteins through the runner, a fresh process each.

``python -m benchmarks.growth ENGINE ARTIFACT CONCURRENCY MAX_TOKENS TOKENS`` is that process.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import runtime
from benchmarks.peers.serve import peak
from benchmarks.processes import Worker
from benchmarks.results import Growth, GrowthPoint, Setting
from runtime import manifest as manifests
from runtime.selftest import selftest

MEDIAN, SIGMA, LOW, HIGH = 280, 0.6, 20, 1022
COMMON_RESIDUES = "LAGVSERTIDPKQNFYMHWC"


def measure_growth(
    artifact: Path, contender: str, setting: Setting, streams: tuple[int, ...]
) -> Growth:
    """One point for each stream of so many tokens.

    Raises:
        WorkerDiedError: a stream failed, or the engine was wrong after it.
    """
    growth = Growth(contender)
    for tokens in streams:
        command = (
            sys.executable, "-m", "benchmarks.growth", contender.partition("@")[0],
            artifact, setting.concurrency, setting.max_tokens, tokens,
        )  # fmt: skip
        with Worker(command) as worker:
            growth.points.append(GrowthPoint(**worker.started))
    return growth


def records(tokens: int) -> Iterator[runtime.Record]:
    """Proteins of mixed lengths, ``tokens`` in all (2 more at most), made one by one."""
    random = np.random.default_rng(20)
    residues = np.array(list(COMMON_RESIDUES))
    drawn = number = 0
    while drawn < tokens:
        length = int(np.exp(random.normal(np.log(MEDIAN), SIGMA)).clip(LOW, HIGH))
        length = min(length, max(1, tokens - drawn - 2))
        yield runtime.Record(str(number), "".join(random.choice(residues, length)))
        drawn, number = drawn + length + 2, number + 1


def stream(artifact: Path, engine: str, setting: Setting, tokens: int) -> GrowthPoint:
    """Embeds the records and keeps nothing, as a writer would; then proves the engine right."""
    manifest = manifests.read(artifact)
    with runtime.load(artifact, engine, "cpu", concurrency=setting.concurrency) as loaded:
        runner = runtime.AsyncInferenceRunner(loaded, max_tokens=setting.max_tokens)
        started = time.perf_counter()
        proteins = sum(1 for _ in runner.run(records(tokens)))
        seconds = time.perf_counter() - started
        peak_mb = peak(None)["peak_mb"]
        outcome = selftest(loaded, artifact, manifest)
    if not outcome.passed:
        raise SystemExit(outcome.worst_line())
    return GrowthPoint(tokens, proteins, seconds, peak_mb)


if __name__ == "__main__":
    _engine, _artifact, _concurrency, _max_tokens, _tokens = sys.argv[1:]
    _point = stream(
        Path(_artifact), _engine, Setting(int(_concurrency), int(_max_tokens)), int(_tokens)
    )
    print(json.dumps({name: getattr(_point, name) for name in _point.__struct_fields__}))
