"""Runs the benchmarks and prints their tables; figures also go to ``benchmarks/results/``."""

import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from benchmarks import environment
from benchmarks.limit import flops
from benchmarks.workload import (
    PACK_TOKENS,
    PADDED_TOKENS,
    SCAN_TOKENS,
    SETS,
    TOKENS,
    lengths_of,
)
from exporter.environment import cpu_name
from runtime import manifest as manifests
from runtime.cli import MAX_CONCURRENCY
from runtime.engine import usable_cores

RESULTS = Path(__file__).parent / "results"
SKEWED = [1000] + 100 * [30]


class Worker:
    """A contender in its own process; see ``benchmarks.worker``."""

    def __init__(self, artifact: Path, name: str):
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", str(artifact), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def ask(self, **request: Any) -> float:
        """Sends a request and waits for its number."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"benchmark worker {self.name!r} died")
        return json.loads(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=4, show_default=True, help="Of each contender, in turn.")
@click.option("--install/--no-install", default=True, help="Also install the runtime afresh.")
def main(artifact: Path, rounds: int, install: bool) -> None:
    """Measure ARTIFACT's engines against eager fair-esm and the machine's limit."""
    manifest = manifests.read(artifact)
    engines = sorted(manifest.engines)
    cores = usable_cores()
    contenders = ["eager", *engines]
    if "onnx" in engines and cores > 1:
        contenders.insert(2, f"onnx@{min(cores, MAX_CONCURRENCY)}")
    results: dict[str, Any] = {
        "artifact": manifest.name,
        "machine": f"{platform.machine()}, {cores} x {cpu_name()}",
        "date": time.strftime("%Y-%m-%d"),
        "speed": {name: measure_speed(artifact, name, contenders, rounds) for name in SETS},
        "memory": {name: measure_memory(artifact, name) for name in ["eager", *engines]},
    }
    for name in SETS:
        add_limit(results["speed"][name], manifest.architecture, lengths_of(name))
    if install:
        results["fresh"] = measure_fresh(artifact)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{manifest.name}.json").write_text(json.dumps(results, indent=2) + "\n")
    click.echo("\n".join(tables(results)))


def measure_speed(artifact: Path, name: str, contenders: list[str], rounds: int) -> dict[str, Any]:
    """Each contender at its best batch size: found in one scan, then measured in turn."""
    with Worker(artifact, "machine") as machine:
        workers = [Worker(artifact, contender) for contender in contenders]
        try:
            measured = {}
            for worker in workers:
                scan = scan_batch_sizes(worker, name)
                best = max(scan, key=lambda size: scan[size])
                measured[worker.name] = {"scan": scan, "best_max_tokens": best, "tokens_s": []}
            rates = []
            for _ in range(rounds):
                rates.append(machine.ask(what="rate"))
                for worker in workers:
                    row = measured[worker.name]
                    size = row["best_max_tokens"]
                    row["tokens_s"].append(
                        worker.ask(what="speed", set=name, tokens=TOKENS, max_tokens=size)
                    )
            for worker in workers:
                measured[worker.name]["peak_mb"] = worker.ask(what="peak")
        finally:
            for worker in workers:
                worker.__exit__(None, None, None)
    return {"contenders": measured, "matrix_flops": rates}


def scan_batch_sizes(worker: Worker, name: str) -> dict[int, float]:
    """Tokens a second at each batch size: the median of three short runs, size by size in turn."""
    sizes = PADDED_TOKENS if worker.name == "eager" else PACK_TOKENS
    request = {"what": "speed", "set": name, "tokens": SCAN_TOKENS}
    passes = [{size: worker.ask(**request, max_tokens=size) for size in sizes} for _ in range(3)]
    return {size: statistics.median(one[size] for one in passes) for size in sizes}


def measure_memory(artifact: Path, name: str) -> float:
    """MB above the loaded weights that one skewed pack (1 of 1000, 100 of 30) takes."""
    with Worker(artifact, name) as worker:
        return worker.ask(what="memory", lengths=SKEWED, max_tokens=sum(SKEWED))


def add_limit(
    speed: dict[str, Any], architecture: manifests.Architecture, lengths: list[int]
) -> None:
    """Tokens a second that the machine's matrix rate allows, round by round."""
    flops_per_token = flops(architecture, lengths) / sum(lengths)
    speed["limit_tokens_s"] = [rate / flops_per_token for rate in speed["matrix_flops"]]


def measure_fresh(artifact: Path) -> dict[str, Any] | str:
    """The fresh environment, or why it could not be made."""
    try:
        return asdict(environment.measure(artifact))
    except subprocess.CalledProcessError as error:
        return f"not run: {' '.join(error.cmd[:5])} ... failed with {error.returncode}"


def tables(results: dict[str, Any]) -> list[str]:
    """For a terminal."""
    lines = [f"{results['artifact']} on {results['machine']}, {results['date']}"]
    for name, speed in results["speed"].items():
        spec = SETS[name]
        lines += [
            "",
            f"{name}: log-normal, median {spec['median']}, {len(lengths_of(name))} proteins, "
            f"{sum(lengths_of(name)):,} tokens; medians of rounds in turn",
            f"  {'':24}{'tokens/s':>10}{'x eager':>9}{'of limit':>10}{'batch':>8}{'peak MB':>9}",
        ]
        contenders = speed["contenders"]
        limits = speed["limit_tokens_s"]
        eager = contenders["eager"]["tokens_s"]
        for contender, row in contenders.items():
            label = describe(contender)
            lines.append(
                f"  {label:24}{statistics.median(row['tokens_s']):10,.0f}"
                f"{_median_ratio(row['tokens_s'], eager):9.2f}"
                f"{_median_ratio(row['tokens_s'], limits):10.2f}"
                f"{row['best_max_tokens']:8,}{row['peak_mb']:9,.0f}"
            )
        rate = statistics.median(speed["matrix_flops"]) / 1e9
        lines.append(f"  {'limit at ' + f'{rate:.0f} GFLOP/s':24}{statistics.median(limits):10,.0f}"
                     f"{_median_ratio(limits, eager):9.2f}{1:10.2f}")  # fmt: skip
        scan = ", ".join(f"{k}: {v:,.0f}" for k, v in contenders["eager"]["scan"].items())
        lines.append(f"  eager at other batch sizes: {scan}")
    lines += [
        "",
        "memory of one skewed pack (1 of 1000 tokens, 100 of 30), above the loaded weights",
    ]
    lines += [f"  {name:24}{megabytes:10,.0f} MB" for name, megabytes in results["memory"].items()]
    lines += ["", "pip install '.[onnx]' in a fresh environment", *_fresh_lines(results)]
    return lines


def describe(contender: str) -> str:
    """For people."""
    engine, _, concurrency = contender.partition("@")
    if engine == "eager":
        return "eager fair-esm, padded"
    return f"{engine}, {concurrency} packs at once" if concurrency else f"{engine}, packed"


def _fresh_lines(results: dict[str, Any]) -> list[str]:
    fresh = results.get("fresh", "not run: --no-install")
    if isinstance(fresh, str):
        return [f"  {fresh}"]
    return [
        f"  {'installed':24}{fresh['installed_mb']:10,.0f} MB, {fresh['packages']} packages",
        f"  {'import runtime':24}{fresh['import_ms']:10,.0f} ms",
        f"  {'first embedding':24}{fresh['first_embedding_ms']:10,.0f} ms, process start included",
        f"  {'its relative L2':24}{fresh['relative_l2']:10.1e} against eager fair-esm in float64",
    ]


def _median_ratio(values: list[float], others: list[float]) -> float:
    """Round by round: a shared machine drifts, and both of a round saw the same of it."""
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


if __name__ == "__main__":
    main()
