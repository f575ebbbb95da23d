"""What Ray costs: one stream by the engine itself, by one actor and by two, in turn.

python -m benchmarks.ray_overhead artifacts/esm2_t6_8M_UR50D-synthetic

One actor has all threads, as the engine itself; two have half each. Loading is not timed. CPU time
is that of this process and of all that Ray began: it tells more than the clock where others use the
machine.
"""

import statistics
import time
from pathlib import Path

import click
import numpy as np
import psutil

from runtime import manifest as manifests
from runtime.attention import default_attention
from runtime.concurrency import Packing
from runtime.engine import Engine
from runtime.packing import PackedBatch
from runtime.ray.cluster import LOCAL, connected
from runtime.ray.engine import RayEngine
from runtime.ray.plan import Plan
from runtime.ray.worker import Loading
from runtime.readers.records import Record
from runtime.runner import AsyncInferenceRunner
from runtime.threads import usable_cores

RESIDUES = list("LAGVSERTIDPKQNFYMHWC")
# Lengths of Swiss-Prot, about.
MEDIAN_LENGTH, SPREAD, LONGEST = 290, 0.6, 1000
SMALL_PACKS = 300


def proteins(tokens: int) -> list[Record]:
    """Random ones, of so many tokens in all."""
    random = np.random.default_rng(0)
    found: list[Record] = []
    while tokens > 0:
        length = int(min(random.lognormal(np.log(MEDIAN_LENGTH), SPREAD) + 1, LONGEST))
        found.append(Record(f"p{len(found)}", "".join(random.choice(RESIDUES, length))))
        tokens -= length + 2
    return found


def speed(engine: Engine, records: list[Record], max_tokens: int) -> tuple[float, float]:
    """Tokens a second, and CPU seconds a million tokens, of a whole stream."""
    runner = AsyncInferenceRunner(engine, max_tokens)
    begun, used = time.perf_counter(), cpu_seconds()
    for _ in runner.run(records):
        pass
    tokens = runner.totals.tokens
    return tokens / (time.perf_counter() - begun), 1e6 * (cpu_seconds() - used) / tokens


def cpu_seconds() -> float:
    """Of this process and of those that it began, Ray's own too."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def milliseconds_of_a_small_pack(engine: Engine) -> float:
    """Median; of one protein of ten residues."""
    batch = PackedBatch.from_sequences(["MKTAYIAKQR"])
    times = []
    for _ in range(SMALL_PACKS):
        begun = time.perf_counter()
        engine.embed(batch, engine.spec.layers[-1], "mean")
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


def say(name: str, found: list[tuple[float, float]], here: list[tuple[float, float]]) -> None:
    """A line of the result."""
    rates, costs = ([pair[i] for pair in found] for i in (0, 1))
    ratios = [mine[1] / theirs[1] for mine, theirs in zip(found, here, strict=True)]
    print(
        f"{name:9} {statistics.median(rates):8,.0f} tokens/s ({min(rates):,.0f} to "
        f"{max(rates):,.0f}), {statistics.median(costs):.1f} CPU s a million tokens, "
        f"{statistics.median(ratios):.3f} of here in the same round"
    )


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.option("--tokens", default=60_000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--max-tokens", default=4096, show_default=True)
def main(artifact: Path, tokens: int, rounds: int, max_tokens: int) -> None:
    """Measures ARTIFACT's engine for CPUs."""
    manifest = manifests.read(artifact)
    cores = usable_cores()
    records = proteins(tokens)

    def loading(threads: int) -> Loading:
        return Loading("auto", "cpu", default_attention(), threads, threads, False, False)

    def on_actors(actors: int) -> RayEngine:
        threads = max(1, cores // actors)
        plan = Plan("cpu", actors, threads, Packing(threads, max_tokens))
        return RayEngine(artifact, manifest, loading(threads), plan)

    found: dict[str, list[tuple[float, float]]] = {}
    latencies: dict[str, float] = {}
    for number in range(rounds + 1):
        for name in ("here", "1 actor", "2 actors"):
            if name == "here":
                with loading(cores).load(artifact) as engine:
                    measured = speed(engine, records, max_tokens)
                    latencies[name] = milliseconds_of_a_small_pack(engine)
            else:
                begun = time.perf_counter()
                with connected(LOCAL), on_actors(int(name[0])) as engine:
                    loaded = time.perf_counter() - begun
                    measured = speed(engine, records, max_tokens)
                    latencies[name] = milliseconds_of_a_small_pack(engine)
                print(f"{name}: Ray begun and the engines loaded in {loaded:.1f} s")
            if number:  # the first round warms caches
                found.setdefault(name, []).append(measured)
    for name, measurements in found.items():
        say(name, measurements, found["here"])
        print(f"{'':9} a pack of one small protein: {latencies[name]:.2f} ms")


if __name__ == "__main__":
    main()
