"""Runs that are killed, again and again, until they are finished; then every bit is compared.

make torture                     60 disturbances
python -m tests.dataset.torture --disturbances 500 --seed 7
"""

import gzip
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from runtime.dataset.folder import PART_FILES, REJECTED_FILE
from tests.conftest import STORED_SCHEMAS, random_sequence, stored_artifact
from tests.dataset.saboteur import HARMS

# From outside, at any time.
KILLED_OUTSIDE = "killed from outside"
# Small packs, small parts: some 25 windows and a part every second one.
OPTIONS = (
    "--engine", "onnx", "--on-error", "skip", "--max-tokens", "64", "--threads", "2",
    "--concurrency", "2", "--part-mb", "0.006", "--max-length", "60", "--long", "window",
)  # fmt: skip
LAST_MOMENT = 160
OK, SOME_REJECTED = 0, 3


@dataclass(frozen=True)
class Rows:
    """What a dataset holds; equal where every bit is."""

    rows: pa.Table
    rejected: pa.Table


def write_input(path: Path, count: int) -> Path:
    """Proteins of all lengths, ids that repeat, records that cannot be run."""
    drawn = np.random.default_rng(5)
    ids = [f"p{i % (count // 2)}" for i in range(count)]
    sequences = [
        "MK*J1" if i % 31 == 7 else random_sequence(drawn, int(drawn.integers(1, 90)))
        for i in range(count)
    ]
    if path.suffix == ".parquet":
        parquet.write_table(pa.table({"id": ids, "sequence": sequences}), path)
        return path
    pairs = zip(ids, sequences, strict=True)
    data = "".join(f">{id_} of {count}\n{sequence}\n" for id_, sequence in pairs).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def command(artifact: Path, proteins: Path, out: Path) -> list[str]:
    columns = ["--sequence-column", "sequence", "--id-column", "id"]
    of_table = columns if proteins.suffix == ".parquet" else []
    return ["embed", str(artifact), str(proteins), "-o", f"{out}/", "--resume", *OPTIONS, *of_table]


def read(out: Path) -> Rows:
    tables = [parquet.read_table(file) for file in sorted(out.glob(PART_FILES))]
    return Rows(pa.concat_tables(tables), parquet.read_table(out / REJECTED_FILE))


def run(*arguments: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "runtime.cli", *arguments], capture_output=True, text=True
    )
    assert ended.returncode in (OK, SOME_REJECTED), ended.stderr


def disturbed(rng: random.Random, arguments: list[str], seconds: float) -> str:
    """Runs the command once, with harm at a random moment; says what was done."""
    harm = rng.choice([*HARMS, KILLED_OUTSIDE])
    if harm == KILLED_OUTSIDE:
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime.cli", *arguments],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(rng.uniform(0.3, seconds))
        process.kill()
        process.wait()
        return harm
    # Half of them near the beginning.
    number = rng.randrange(rng.choice([12, LAST_MOMENT]))
    subprocess.run(
        [sys.executable, "-m", "tests.dataset.saboteur", harm, str(number), *arguments],
        capture_output=True, timeout=300,
    )  # fmt: skip
    return harm


def torture(
    folder: Path, proteins: Path, disturbances: int, seed: int, kept: Path | None = None
) -> Counter[str]:
    """What was done, and how often a dataset was finished and compared.

    Args:
        folder: to work in.
        proteins: the input.
        disturbances: at least.
        seed: of moments and harms.
        kept: proteins whose vectors are in the cache when a run begins; None runs without one.

    Raises:
        AssertionError: a row is missing, there twice, elsewhere, or has another bit.
    """
    rng = random.Random(f"{seed} {proteins.name}")
    artifact = stored_artifact(max(STORED_SCHEMAS), folder)
    cache = folder / "cache"
    if kept:
        run(*command(artifact, kept, folder / "kept"), "--cache", str(cache))

    def of(out: Path) -> list[str]:
        if kept is None:
            return command(artifact, proteins, out)
        # Each begins with what was in it first, not with what the runs before kept.
        own = shutil.copytree(cache, folder / f"cache of {out.name}")
        return [*command(artifact, proteins, out), "--cache", str(own)]

    begun = time.monotonic()
    run(*of(folder / "whole"))
    seconds = time.monotonic() - begun
    expected = read(folder / "whole")
    done: Counter[str] = Counter()
    number = 0
    while done.total() - done["compared"] < disturbances:
        arguments = of(folder / f"out{number}")
        for _ in range(rng.randrange(1, 8)):
            done[disturbed(rng, arguments, seconds)] += 1
        run(*arguments)
        assert read(folder / f"out{number}") == expected, f"out{number} differs, seed {seed}"
        done["compared"] += 1
        number += 1
    return done


@click.command()
@click.option("--disturbances", default=60, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--proteins", default=600, show_default=True)
def main(disturbances: int, seed: int, proteins: int) -> None:
    plans = list(product(("input.fasta", "input.fasta.gz", "input.parquet"), (False, True)))
    for name, with_cache in plans:
        with tempfile.TemporaryDirectory() as folder:
            given = write_input(Path(folder) / name, proteins)
            kept = write_input(Path(folder) / f"kept-{name}", proteins // 2) if with_cache else None
            done = torture(Path(folder), given, disturbances // len(plans), seed, kept)
        said = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in done.items())
        with_it = " with a cache" if with_cache else ""
        click.echo(f"{name}{with_it}: {said}: every bit is the same")


if __name__ == "__main__":
    main()
