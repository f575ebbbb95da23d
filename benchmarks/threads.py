"""Threads that want to run while an engine works: ``python -m benchmarks.threads ARTIFACT``.

Linux gives the state of every thread; ``R`` is runnable, on a core or waiting for one. So 64
threads can be counted on 2 cores. Prints the table of docs/threads-and-memory.md.
"""

import argparse
import itertools
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.concurrency import Stream, choose_packing

CORES = (1, 2, 3, 4, 8, 16, 64)
SAMPLE_EVERY_S = 0.01
AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWC"


@dataclass(frozen=True)
class Load:
    """What a process embeds, again and again."""

    name: str
    num_proteins: int
    length: int

    @property
    def stream(self) -> Stream:
        """What a scan of it would say."""
        tokens = self.length + 2
        return Stream(self.num_proteins, self.num_proteins * tokens, tokens)


ONE_PROTEIN = Load("one protein alone", 1, 1500)
# For each of 64 cores several packs.
MANY_PROTEINS = Load("many proteins", 4096, 100)


def runnable_threads(pid: int) -> int:
    """Threads of a process in state ``R``."""
    count = 0
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            # The name, in parentheses, may hold blanks; the state comes after it.
            count += stat.read_text().rpartition(")")[2].split()[0] == "R"
        except OSError:  # the thread has ended
            continue
    return count


def sample(
    artifact: Path, engine: str, threads: int, concurrency: int, max_tokens: int, load: Load,
    seconds: float,
) -> list[int]:  # fmt: skip
    """Runnable threads of a process that embeds ``load``, sampled once it gave a first result.

    Raises:
        RuntimeError: the process ended.
    """
    command = [
        sys.executable, "-m", "benchmarks.threads", "--work", artifact, engine, threads,
        concurrency, max_tokens, load.num_proteins, load.length,
    ]  # fmt: skip
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        try:
            if not process.stdout or process.stdout.readline() != "embedding\n":
                raise RuntimeError(f"{command} did not start")
            samples = []
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                samples.append(runnable_threads(process.pid))
                time.sleep(SAMPLE_EVERY_S)
        finally:
            process.kill()
    return samples


def typical_peak(samples: list[int]) -> int:
    """Their 90th percentile: threads meet at the end of every operator, and are fewer there."""
    return round(float(np.quantile(samples, 0.9)))


def _work(
    artifact: str, engine: str, threads: int, concurrency: int, max_tokens: int, load: Load
) -> None:
    import runtime

    random = np.random.default_rng(0)
    residues = np.array(list(AMINO_ACIDS))
    with runtime.load(
        artifact, engine, "cpu", threads=threads, concurrency=concurrency, check_files=False
    ) as loaded:
        runner = runtime.AsyncInferenceRunner(loaded, max_tokens)
        records = itertools.count()
        size = 1 if load.num_proteins == 1 else None
        started = False
        while True:  # streams: of one protein, or endless
            # Equal proteins would be run once.
            stream = (
                runtime.Record(str(i), "".join(random.choice(residues, load.length)))
                for i in itertools.islice(records, size)
            )
            for _ in runner.run(stream):
                if not started:
                    print("embedding", flush=True)
                started = True


def main() -> None:
    """Prints the table."""
    if sys.argv[1:2] == ["--work"]:
        artifact, engine, *numbers = sys.argv[2:]
        threads, concurrency, max_tokens, num_proteins, length = map(int, numbers)
        _work(artifact, engine, threads, concurrency, max_tokens, Load("", num_proteins, length))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--engine", default="onnx")
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    from runtime import manifest as manifests

    embed_dim = manifests.read(arguments.artifact, check_files=False).architecture.embed_dim
    print("| cores | one protein alone | many proteins | packs at once |")
    print("|---|---|---|---|")
    for cores in CORES:
        cells = []
        for load in (ONE_PROTEIN, MANY_PROTEINS):
            packing = choose_packing(cores, 4096, embed_dim, load.stream, None)
            samples = sample(
                arguments.artifact, arguments.engine, cores, packing.concurrency,
                packing.max_tokens, load, arguments.seconds,
            )  # fmt: skip
            cells.append(typical_peak(samples))
        print(f"| {cores} | {cells[0]} | {cells[1]} | {packing.concurrency} |", flush=True)


if __name__ == "__main__":
    main()
