"""Contacts as users get them: the command, the model, files and what is refused."""

import csv
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from pyarrow import parquet

import esm2_engines as esm2
from exporter.model.reference import WeightsSource, load_reference
from runtime.cli import main
from runtime.contacts.outputs import Pairs
from runtime.pairs import as_map, pair_bounds

SEQUENCES = {"a/1": "MKTAYIAKQRQISFVKSHFSRQLEERLG", "b": "GGAVL", "c": "M"}
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def artifact(task_artifact: Path) -> Path:
    return task_artifact


@pytest.fixture(scope="module")
def maps(artifact: Path) -> list[np.ndarray]:
    with esm2.load(artifact) as model:
        return model.contacts(SEQUENCES)


@pytest.fixture
def run(artifact: Path, tmp_path: Path) -> Run:
    fasta = tmp_path / "x.fasta"
    fasta.write_text("".join(f">{name}\n{s}\n" for name, s in SEQUENCES.items()))

    def run(*arguments: object, of: Path = artifact, read: Path = fasta) -> Result:
        return CliRunner().invoke(main, ["contacts", str(of), str(read), *map(str, arguments)])

    return run


def test_pairs_and_maps_are_the_same_numbers() -> None:
    pairs = np.arange(6.0)
    whole = as_map(pairs)
    np.testing.assert_array_equal(whole, [[0, 1, 2], [1, 3, 4], [2, 4, 5]])
    assert pair_bounds(np.array([0, 5, 7, 8, 11])).tolist() == [0, 6, 6, 6, 7]
    assert as_map(pairs[:0]).shape == (0, 0)


def test_a_model_gives_a_symmetric_map_for_each(maps: list[np.ndarray]) -> None:
    for found, sequence in zip(maps, SEQUENCES.values(), strict=True):
        assert found.shape == (len(sequence),) * 2
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, found.T)
        assert ((found > 0) & (found < 1)).all()


def test_of_one_sequence_a_model_gives_its_map(artifact: Path, maps: list[np.ndarray]) -> None:
    with esm2.load(artifact) as model:
        np.testing.assert_allclose(model.contacts(SEQUENCES["a/1"]), maps[0], atol=1e-5)


@pytest.mark.parametrize("ending", ["npz", "h5"])
def test_maps_are_found_by_id(
    run: Run, tmp_path: Path, maps: list[np.ndarray], ending: str
) -> None:
    output = tmp_path / f"out.{ending}"
    done = run("-o", output)
    assert done.exit_code == 0, done.output
    file = np.load(output) if ending == "npz" else h5py.File(output)
    with file:
        names = SEQUENCES if ending == "npz" else ["a|1", "b", "c"]
        for name, expected in zip(names, maps, strict=True):
            np.testing.assert_allclose(file[name][:], expected, atol=1e-5)


@pytest.mark.parametrize("include", [["contacts"], ["mean", "per_tok", "contacts"]])
def test_extract_writes_the_maps_that_fair_esms_script_does(
    artifact: Path, tiny_checkpoint: Path, tmp_path: Path, include: list[str]
) -> None:
    of = {"a": SEQUENCES["a/1"] * 3, "b": "GGAVL", "equal": "GGAVL", "nothing": ""}
    fasta, out = tmp_path / "x.fasta", tmp_path / "out"
    fasta.write_text("".join(f">{label}\n{sequence}\n" for label, sequence in of.items()))
    command = ["extract", artifact, fasta, out, "--truncation_seq_length", 60, "--include"]
    done = CliRunner().invoke(main, [*map(str, command), *include])
    assert done.exit_code == 0, done.output
    reference = load_reference(WeightsSource("checkpoint", str(tiny_checkpoint), contacts=True))
    _, _, tokens = reference.alphabet.get_batch_converter(60)(list(of.items()))
    with torch.no_grad():
        eager = reference.model(tokens, repr_layers=[2], return_contacts=True)
    for i, (label, sequence) in enumerate(of.items()):
        length = min(60, len(sequence))
        found = torch.load(out / f"{label}.pt")
        expected = eager["contacts"][i, :length, :length]
        torch.testing.assert_close(found["contacts"], expected, rtol=0, atol=5e-6)
        names = {"per_tok": "representations", "mean": "mean_representations"}
        kept = [name for name in names if name in include]
        assert list(found) == ["label", *(names[name] for name in kept), "contacts"]
        if kept:
            rows = eager["representations"][2][i, 1 : length + 1]
            torch.testing.assert_close(found["representations"][2], rows, rtol=0, atol=2e-5)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_hold_the_likeliest_pairs(
    run: Run, tmp_path: Path, maps: list[np.ndarray], ending: str
) -> None:
    output = tmp_path / f"out.{ending}"
    done = run("-o", output, "--min-separation", 4, "--top", "L/2")
    assert done.exit_code == 0, done.output
    if ending == "csv":
        with output.open() as file:
            rows = list(csv.DictReader(file))
    else:
        rows = parquet.read_table(output).to_pylist()
    of_a = [row for row in rows if row["id"] == "a/1"]
    assert len(of_a) == 14
    upper = np.sort(maps[0][np.triu_indices(28, 4)])[::-1]
    np.testing.assert_allclose([float(row["probability"]) for row in of_a], upper[:14], atol=1e-5)
    i, j = int(of_a[0]["i"]), int(of_a[0]["j"])
    assert j - i >= 4
    assert maps[0][i - 1, j - 1] == pytest.approx(upper[0], abs=1e-5)
    assert [(row["id"], int(row["i"]), int(row["j"])) for row in rows if row["id"] == "b"] == [
        ("b", 1, 5)
    ]


def test_repeated_ids_keep_their_maps_and_pictures(run: Run, tmp_path: Path) -> None:
    fasta = tmp_path / "twice.fasta"
    fasta.write_text(">x\nMKTAY\n>x\nGGA\n")
    done = run("-o", tmp_path / "out.npz", "--plot", tmp_path / "plots", read=fasta)
    assert done.exit_code == 0, done.output
    with np.load(tmp_path / "out.npz") as file:
        assert [file[name].shape for name in ("x", "x (2)")] == [(5, 5), (3, 3)]
    pictures = sorted((tmp_path / "plots").glob("*.png"))
    assert [path.name for path in pictures] == ["x (2).png", "x.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


@pytest.mark.parametrize(
    ("top", "count"), [("L", 100), ("2L", 200), ("L/5", 20), ("7", 7), ("all", 10_000)]
)
def test_how_many_pairs(top: str, count: int) -> None:
    assert Pairs(6, top).count(100) == count


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "x.txt"], "the ending says the format"),
        (["-o", "x.npz", "--top", "L"], "choose pairs for a table"),
        (["-o", "x.csv", "--top", "L/0"], "--top takes a number"),
        (["-o", "x.csv", "--top", "many"], "--top takes a number"),
        (["-o", "x.csv", "--max-length", 9, "--long", "window"], "contacts of windows"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    run: Run, arguments: list[object], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert said in line
    assert not list(tmp_path.glob("x.[ct]*"))


def test_an_artifact_without_contacts_says_how_to_build_one(
    run: Run, tiny_artifact: Path, tmp_path: Path
) -> None:
    done = run("-o", tmp_path / "x.npz", of=tiny_artifact)
    assert done.exit_code == 2
    assert "build it with 'esm2-export build --contacts'" in done.stderr
