"""Where a forward of ``onnx`` spends its time on CPUs, by kind of node, and what that leaves.

python -m benchmarks.kernels ARTIFACT [ARTIFACT ...]
"""

import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.limit import linear_flops, matrix_rate
from benchmarks.peers.serve import random_tokens
from benchmarks.report.markdown import head, row
from benchmarks.workload import WORKLOADS, packs_of
from runtime import manifest as manifests
from runtime.engines.onnx import cpu
from runtime.packing import PackedBatch
from runtime.threads import usable_cores

ENGINE = "onnx"
PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "FusedGemm"}
# Kinds below this share of the whole are added up.
NAMED = 0.005


@click.command(help=__doc__)
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--tokens", default=4_096, help="Of mixed lengths, in packs of 1,024.")
@click.option("--rounds", default=3, help="The median of each kind is shown.")
def main(artifacts: tuple[Path, ...], tokens: int, rounds: int) -> None:
    """Prints a table of Markdown for each artifact."""
    threads = usable_cores()
    packs = packs_of(WORKLOADS["mixed"].draw(tokens), 1_024)
    num_tokens = sum(map(sum, packs))
    for artifact in artifacts:
        architecture = manifests.read(artifact).architecture
        rounds_ms, rates = [], []
        for _ in range(rounds):
            rates.append(matrix_rate())
            rounds_ms.append(_by_kind(artifact, packs, threads))
        kinds = {kind: statistics.median(each[kind] for each in rounds_ms) for kind in rounds_ms[0]}
        least = 1000 * linear_flops(architecture, num_tokens) / statistics.median(rates)
        print(f"\n{architecture.name}, {num_tokens:,} tokens, {threads} threads")
        print(_table(kinds, least))


def _by_kind(artifact: Path, packs: list[list[int]], threads: int) -> dict[str, float]:
    """Milliseconds of all packs in each kind of node, by ONNX Runtime's profiler."""
    random = np.random.default_rng(0)
    batches = [
        PackedBatch.from_tokens([random_tokens(length, random) for length in pack])
        for pack in packs
    ]
    with tempfile.TemporaryDirectory() as folder:
        session = _session(artifact, threads, f"{folder}/profile")
        for batch in (batches[0], *batches):  # the first finds memory
            session.run(None, cpu.feeds_of(batch))
        events = json.loads(Path(session.end_profiling()).read_text())
    kinds: dict[str, float] = defaultdict(float)
    runs = sorted(e["ts"] for e in events if e["name"] == "model_run")
    for event in events:
        if event["name"].endswith("_kernel_time") and event["ts"] >= runs[1]:
            kinds[event["args"]["op_name"]] += event["dur"] / 1000
    return kinds


def _session(artifact: Path, threads: int, prefix: str) -> Any:
    entry = manifests.read(artifact).engines[ENGINE]
    options = cpu.session_options(threads, "cpu")
    options.enable_profiling = True
    options.profile_file_prefix = prefix
    if entry.op_library is not None:
        options.register_custom_ops_library(str(artifact / entry.op_library))
    return cpu.open_session(artifact / entry.file, options, None)


def _table(kinds: dict[str, float], least_ms: float) -> str:
    whole = sum(kinds.values())
    products = sum(ms for kind, ms in kinds.items() if kind in PRODUCTS)
    others = {kind: ms for kind, ms in kinds.items() if kind not in PRODUCTS}
    small = sum(ms for ms in others.values() if ms < NAMED * whole)
    rows = [("linears", products)]
    rows += sorted((x for x in others.items() if x[1] >= NAMED * whole), key=lambda x: -x[1])
    rows += [("all others", small), ("linears at the rate of a large product", least_ms)]
    cells = ((kind, f"{ms:,.0f}", f"{ms / whole:.1%}") for kind, ms in rows)
    return "\n".join([*head(("kind of node", "ms", "share")), *map(row, cells)])


if __name__ == "__main__":
    main()
