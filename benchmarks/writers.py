"""Peak memory of ``--pool none``: each format on streams that differ in tokens and in width.

``python -m benchmarks.writers`` prints the table. Each figure is of a process of its own; an engine
that only gives vectors stands in for the model, so that writing, and the runner, are what counts.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.growth import records
from runtime.engine import EngineSpec
from runtime.packing import PackedBatch
from runtime.runner import AsyncInferenceRunner, Embedding
from runtime.writers import write_embeddings

ENDINGS = (".npz", ".h5", ".parquet")
TOKENS = (50_000, 500_000)
WIDTHS = (320, 1280)
THROUGH = ("writer", "runner")
RESIDUES = 350


class VectorEngine:
    """Gives rows of its own for every pack, at once: the runner's engine without a model."""

    concurrency = 1

    def __init__(self, width: int):
        self._width = width
        self.spec = EngineSpec(
            format="vectors",
            artifact="none",
            device="cpu",
            dtype="float32",
            layers=(1,),
            pool=None,
            attention="none",
            attention_reason="",
            library="none",
            synthetic=True,
            embed_dim=width,
        )

    def unsupported_reasons(self, batch: PackedBatch) -> list[str]:
        """It takes all."""
        return []

    def embed(self, batch: PackedBatch, layer: int, how: str) -> np.ndarray:
        """``[T, E]`` float32."""
        return np.random.default_rng(0).random((batch.num_tokens, self._width), "float32")


def embeddings(tokens: int, width: int) -> Iterator[Embedding]:
    """Proteins of ``RESIDUES`` residues, one after the other."""
    random = np.random.default_rng(0)
    for number in range(tokens // (RESIDUES + 2)):
        yield Embedding(
            f"p{number}", RESIDUES + 2, random.random((RESIDUES, width), dtype="float32")
        )


def measure(ending: str, through: str, tokens: int, width: int) -> dict[str, Any]:
    """Of one stream, in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / f"x{ending}")
        command = [sys.executable, "-m", "benchmarks.writers", "--one"]
        answer = subprocess.run(
            [*command, path, through, str(tokens), str(width)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    return {
        "ending": ending, "through": through, "tokens": tokens, "width": width,
        **json.loads(answer.stdout),
    }  # fmt: skip


def _measure_here(path: Path, through: str, tokens: int, width: int) -> dict[str, float]:
    if through == "runner":
        engine: Any = VectorEngine(width)
        stream = AsyncInferenceRunner(engine, pool="none").run(records(tokens))
    else:
        stream = embeddings(tokens, width)
    started = time.perf_counter()
    write_embeddings(path, stream, {})
    return {
        "seconds": time.perf_counter() - started,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "size_mb": path.stat().st_size / 1e6,
    }


@click.command()
@click.option("--one", nargs=4, hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(one: tuple[str, str, str, str] | None, as_json: bool) -> None:
    """Measure the peak memory of writing one vector for each residue."""
    if one:
        path, through, tokens, width = one
        click.echo(json.dumps(_measure_here(Path(path), through, int(tokens), int(width))))
        return
    figures = [
        measure(ending, through, tokens, width)
        for ending in ENDINGS for through in THROUGH for width in WIDTHS for tokens in TOKENS
    ]  # fmt: skip
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    click.echo("| format | through | E | tokens | file, MB | peak, MB | seconds |")
    click.echo("|---|---|---|---|---|---|---|")
    for row in figures:
        click.echo(
            f"| {row['ending']} | {row['through']} | {row['width']} | {row['tokens']:,} | "
            f"{row['size_mb']:,.0f} | {row['peak_mb']:.0f} | {row['seconds']:.1f} |"
        )


if __name__ == "__main__":
    main()
