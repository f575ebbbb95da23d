"""Several layers and poolings from one forward."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet

from runtime import cli
from runtime.engine import Outputs
from runtime.engines.base import FetchingEngine
from runtime.packing import PackedBatch
from tests.conftest import random_sequence

PROTEINS = [random_sequence(np.random.default_rng(i), 3 + 2 * i) for i in range(20)]


@pytest.fixture
def embed(artifact: Path, tmp_path: Path) -> Callable[..., Result]:
    fasta = tmp_path / "in.fasta"
    fasta.write_text("".join(f">p{i}\n{sequence}\n" for i, sequence in enumerate(PROTEINS)))

    def run(output: str, *more: str) -> Result:
        arguments = [
            "embed", str(artifact), str(fasta), "-o", str(tmp_path / output), "--engine", "onnx",
            "--max-tokens", "100", *more,
        ]  # fmt: skip
        return CliRunner().invoke(cli.main, arguments)

    return run


def column(path: Path, name: str) -> np.ndarray:
    files = sorted(path.glob("part-*")) if path.is_dir() else [path]
    return np.concatenate([np.stack(parquet.read_table(f)[name].to_pylist()) for f in files])


@pytest.mark.parametrize("output", ["all.parquet", "all/"])
def test_each_column_is_what_a_run_of_its_own_gives(
    embed: Callable[..., Result], tmp_path: Path, output: str
) -> None:
    result = embed(output, "--layer", "0, 2", "--pool", "mean,cls", "--store", "float32")
    assert result.exit_code == 0, result.output
    names = ["mean_0", "cls_0", "mean_2", "cls_2"]
    for name in names:
        pool, layer = name.split("_")
        assert embed(f"{name}.parquet", "--layer", layer, "--pool", pool).exit_code == 0
        alone = column(tmp_path / f"{name}.parquet", "embeddings")
        assert np.array_equal(column(tmp_path / output, name), alone)
    first = next(tmp_path.glob(f"{output}*" if "." in output else f"{output}part-*"))
    table = parquet.read_table(first)
    assert [name for name in table.column_names if "_" in name] == ["num_tokens", *names]
    assert table.schema.metadata[b"layer"] == b"0,2"
    assert table.schema.metadata[b"pool"] == b"mean,cls"


def test_there_is_one_forward(
    embed: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    original = FetchingEngine.run

    def counting(self: FetchingEngine, batch: PackedBatch, names: Sequence[str]) -> Outputs:
        ran.append(batch.num_proteins)
        return original(self, batch, names)

    monkeypatch.setattr(FetchingEngine, "run", counting)
    assert embed("out/", "--layer", "0,1,2", "--pool", "mean,mean-with-eos").exit_code == 0
    assert sum(ran) == len(PROTEINS)


def test_with_cache_and_windows(embed: Callable[..., Result], tmp_path: Path) -> None:
    options = ("--layer", "1,2", "--max-length", "16", "--long", "window", "--cache")
    first = embed("first/", *options, str(tmp_path / "cache"))
    again = embed("again/", *options, str(tmp_path / "cache"))
    assert "found in the cache" in again.stdout, first.output
    for name in ("mean_1", "mean_2"):
        assert np.array_equal(column(tmp_path / "first", name), column(tmp_path / "again", name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pool", "mean,none"], "--pool none gives a vector for each residue, and goes alone"),
        (["--pool", "none", "--layer", "1,2"], "--pool none .* and one layer"),
        (["--pool", "mean,median"], "pool must be one of mean, .* got 'median'"),
        (["--layer", "1,x"], "--layer takes numbers with commas, such as 6,33, got 'x'"),
        (["--layer", "1,7"], r"layer 7 is not in this artifact, it exports \[0, 1, 2\]"),
        (["--layer", "1,2", "-o", "x.npz"], "several layers or poolings go to columns of Parquet"),
    ],
)
def test_what_is_refused(
    embed: Callable[..., Result], tmp_path: Path, options: list[str], message: str
) -> None:
    result = embed("out/", *options)
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()
    assert re.search(message, result.stderr), result.stderr
