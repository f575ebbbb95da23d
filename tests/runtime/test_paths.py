"""Folders and patterns as input."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from runtime import cli
from runtime.errors import InputError
from runtime.readers.paths import files_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.fasta", "a.FA.gz", "notes.txt", ".hidden.fa", "_x.fasta", "t.csv", "low/c.faa"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(">x\nMK\n")
    (tmp_path / "[odd].fasta").write_text(">x\nMK\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["in"], ["in/a.FA.gz", "in/b.fasta"]),
        (["in/low", "in/b.fasta"], ["in/low/c.faa", "in/b.fasta"]),
        (["in/*.fa*", "-"], ["in/b.fasta", "-"]),
        (["in/**/*.fa*"], ["in/b.fasta", "in/low/c.faa"]),
        (["[odd].fasta"], ["[odd].fasta"]),
        (["missing.fasta"], ["missing.fasta"]),
        (["b", "b"], ["b", "b"]),
    ],
)
def test_files_that_are_meant(here: Path, given: list[str], expected: list[str]) -> None:
    found = files_of(given, False, "out.npz")
    assert [path for path in found if "_x" not in path] == expected


def test_a_file_of_several_names_is_meant_once(here: Path) -> None:
    (here / "in" / "low" / "loop").symlink_to("..")
    (here / "in" / "other.fasta").symlink_to("b.fasta")
    found = files_of(["in/**/**/*.fa*"], False, "out.npz")
    assert [path for path in found if "_x" not in path] == ["in/b.fasta", "in/low/c.faa"]


def test_what_is_written_is_not_read(here: Path) -> None:
    for name in ("out.csv", "out.csv.rejected.tsv", "parts/part-0.csv", "parts/_journal.jsonl"):
        (here / "in" / name).parent.mkdir(exist_ok=True)
        (here / "in" / name).write_text("sequence\nMK\n")
    assert files_of(["in"], True, "in/out.csv") == ("in/t.csv",)
    assert files_of(["in/parts/../**/*.csv"], True, f"{here}/in/parts/") == (
        "in/parts/../out.csv", "in/parts/../t.csv",
    )  # fmt: skip
    with pytest.raises(InputError, match="in/parts means no file but what is written"):
        files_of(["in/parts"], True, "in/parts")


def test_tables_of_a_folder(here: Path) -> None:
    assert files_of(["in"], True, "out.npz") == ("in/t.csv",)


def test_whole_path_patterns(here: Path) -> None:
    assert files_of([f"{here}/in/low/*"], False, "out.npz") == (f"{here}/in/low/c.faa",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["*.nothing"], r"no file is named like \*\.nothing"),
        (["in", "in/b*"], r"in/b.fasta is given twice, by in and by in/b\*"),
        (["in", "./in/b.fasta"], "in/b.fasta is given twice, by in and by ./in/b.fasta"),
        (["in/b.fasta", "in"], "in/b.fasta is given twice, by in/b.fasta and by in"),
        (["in/empty"], "folder in/empty holds no file that ends in .fasta, .fa, .*a pattern in"),
        (["in/tables"], "for its tables give --sequence-column"),
    ],
)
def test_what_is_none(here: Path, given: list[str], message: str) -> None:
    (here / "in" / "empty").mkdir()
    (here / "in" / "tables").mkdir()
    (here / "in" / "tables" / "a.tsv").write_text("sequence\nMK\n")
    with pytest.raises(InputError, match=message):
        files_of(given, False, "out.npz")


def test_the_command_reads_a_folder_in_order(ready_artifact: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    (tmp_path / "in").mkdir()
    for name, sequence in (("b", "MKTA"), ("a", "GGAV")):
        (tmp_path / "in" / f"{name}.fasta").write_text(f">{name} of a folder\n{sequence}\n")
    result = CliRunner().invoke(
        cli.main,
        [
            "embed", str(ready_artifact), str(tmp_path / "in"), "-o", str(tmp_path / "out"),
            "--with", "sha256,header, sequence",
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "part-00000.parquet")
    assert rows.column_names == [
        "row", "ids", "num_tokens", "sha256", "header", "sequence", "embeddings",
    ]  # fmt: skip
    assert rows["header"].to_pylist() == ["a of a folder", "b of a folder"]
    assert rows["sequence"].to_pylist() == ["GGAV", "MKTA"]
    assert rows["sha256"].to_pylist()[1] == (
        "19320b2ebdf629e238580faf640050caf921dea3bbf229cc11c64e17a26b6199"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--with", "names"], "--with knows header, sequence, sha256, got 'names'"),
        (["--with", "header", "-o", "x.npz"], "--with adds columns to Parquet, and x.npz is none"),
    ],
)
def test_columns_that_cannot_be_added(
    ready_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.fasta").write_text(">a\nMK\n")
    arguments = ["embed", str(ready_artifact), "a.fasta", "-o", "out/", *options]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
