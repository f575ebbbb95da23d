"""Proteins from CSV, TSV and Parquet."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet

import runtime
from runtime.cli import main
from runtime.readers.records import Record
from runtime.readers.tables import Columns, read_tables
from tests.dataset.torture import OPTIONS

BOTH = Columns("sequence", "id")
ROWS = {"id": ["p1", "p,2", "p3"], "organism": ["a", "b", "c"], "sequence": ["MKT", "GGAVL", "W"]}
SEQUENCES = [("p1", "MKT"), ("p,2", "GGAVL"), ("p3", "W")]
CSV = 'id,organism,sequence\np1,a,MKT\n"p,2",b,GGAVL\np3,c,W\n'


def write(path: Path, text: str = CSV) -> str:
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def write_parquet(path: Path, **columns: list[object]) -> str:
    parquet.write_table(pyarrow.table(columns or ROWS), path)
    return str(path)


def records(path: str, columns: Columns = BOTH) -> list[Record]:
    return list(read_tables([path], columns))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", CSV),
        ("x.csv.gz", CSV),
        ("x.txt", CSV.replace("\n", "\r\n")),
        ("x.csv", "\ufeff" + CSV),
        ("x.csv", CSV.rstrip("\n")),
        ("x.csv", CSV.replace("\np3", "\n\np3")),
        ("x.tsv", "id\torganism\tsequence\np1\ta\tMKT\np,2\tb\tGGAVL\np3\tc\tW\n"),
        ("x.csv", "id;sequence\np1;MKT\np,2;GGAVL\np3;W\n"),
        ("x.csv", 'sequence,"id"\nMKT,p1\nGGAVL,"p,2"\nW,p3\n'),
    ],
)
def test_text(tmp_path: Path, name: str, text: str) -> None:
    found = records(write(tmp_path / name, text))
    assert [(record.id, record.sequence) for record in found] == SEQUENCES


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", 'id,sequence\n"a\nb",MK\n\nc,W\n')
    assert [(record.id, record.line) for record in records(path)] == [("a\nb", 2), ("c", 5)]
    path = write(tmp_path / "x.csv", "\n\nid,sequence\nb,W\n")
    assert [record.line for record in records(path)] == [4]


def test_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet")
    found = records(path)
    assert [(record.id, record.sequence) for record in found] == SEQUENCES
    assert [record.id for record in records(path, Columns("sequence"))] == [
        "record_1", "record_2", "record_3",
    ]  # fmt: skip


def test_parquet_of_other_types(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", id=[7, None], sequence=[b"MK", b"W"])
    assert [(record.id, record.sequence) for record in records(path)] == [("7", "MK"), ("", "W")]
    table = pyarrow.table({"id": ["a"], "sequence": pyarrow.array(["MK"]).dictionary_encode()})
    parquet.write_table(table, path)
    assert [record.sequence for record in records(path)] == ["MK"]


@pytest.mark.parametrize(
    ("sequences", "reason"),
    [
        (["MK", None], "after 1 records: row 2 has no sequence, but null"),
        ([["MK"], ["W"]], r"its column 'sequence' holds list<\w+: string>, and no text"),
        ([1.5, 2.5], "its column 'sequence' holds double, and no text"),
    ],
)
def test_parquet_without_text(tmp_path: Path, sequences: list[object], reason: str) -> None:
    path = write_parquet(tmp_path / "x.parquet", id=["a", "b"], sequence=sequences)
    with pytest.raises(runtime.InputError, match=reason):
        records(path)


def test_a_large_field_of_another_column(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", f"id,notes,sequence\na,{'n' * 200_000},MK\n")
    assert [record.sequence for record in records(path)] == ["MK"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name,sequence\na,MK\n", "after 0 records: it has no column 'id', it has name, sequence"),
        ("id,sequence\na,MK\nb\n", "after 1 records: line 3 has 1 fields, the first has 2"),
        ("id,sequence\n", "is empty: it holds no row"),
        ("", "it has no column 'sequence', it has none"),
        ('id,sequence,n\na,MK,x\nb,W,"y\nc,M,z\n', "unexpected end of data"),
        (
            'id,n,sequence\na,"5 inch,MK\nb,6,W\nc,7 inch",M\n',
            "after 0 records: a quoted field goes on from line 2 to 4",
        ),
        ("id,sequence,sequence\na,MK,W\n", "it has two columns 'sequence'. Rename one"),
        (">a\nMKT\n", "it has no column 'sequence', it has >a"),
        ("\x89HDF\r\n", "it is an HDF5 file"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "x.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(runtime.InputError) as error:
        records(str(tmp_path / "x.csv"))
    assert reason in str(error.value)


def test_a_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = Path(write_parquet(tmp_path / "x.parquet"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(runtime.InputError, match="after 0 records: its Parquet is damaged"):
        records(str(path))


# --- The command ------------------------------------------------------------------------------


def run(artifact: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["embed", str(artifact), *map(str, arguments)])


def test_the_command_gives_what_it_gives_for_fasta(ready_artifact: Path, tmp_path: Path) -> None:
    fasta = write(tmp_path / "x.fasta", "".join(f">{name}\n{s}\n" for name, s in SEQUENCES))
    assert run(ready_artifact, fasta, "-o", tmp_path / "fasta.npz").exit_code == 0
    columns = ("--sequence-column", "sequence", "--id-column", "id")
    for table in (write(tmp_path / "x.csv"), write_parquet(tmp_path / "x.parquet")):
        result = run(ready_artifact, table, "-o", tmp_path / "table.npz", *columns)
        assert result.exit_code == 0, result.output
        with np.load(tmp_path / "fasta.npz") as one, np.load(tmp_path / "table.npz") as other:
            assert one["ids"].tolist() == other["ids"].tolist()
            assert np.array_equal(one["embeddings"], other["embeddings"])


def test_a_bad_row_is_named_before_a_model_is_loaded(tmp_path: Path, ready_artifact: Path) -> None:
    path = write(tmp_path / "x.csv", CSV.replace("GGAVL", "GJ"))
    (ready_artifact / "model.onnx").unlink()
    result = run(ready_artifact, path, "-o", tmp_path / "x.npz", "--sequence-column", "sequence")
    assert result.exit_code == 2
    assert "record 'record_2'" in result.stderr
    assert "line 3" in result.stderr


def test_a_table_without_its_column_is_told_the_option(
    ready_artifact: Path, tmp_path: Path
) -> None:
    for table in (write(tmp_path / "x.csv"), write_parquet(tmp_path / "x.parquet")):
        result = run(ready_artifact, table, "-o", tmp_path / "x.npz")
        assert "'esm2-run embed' reads it with --sequence-column NAME" in result.stderr
    result = run(ready_artifact, table, "-o", tmp_path / "x.npz", "--id-column", "id")
    assert "--id-column is for tables: give --sequence-column too" in result.stderr


def test_a_folder_goes_on_with_a_table(ready_artifact: Path, tmp_path: Path) -> None:
    sequences = ["MK" * (i % 40 + 1) + "GAVL"[i % 4] for i in range(150)]
    table = write_parquet(tmp_path / "x.parquet", id=list(range(150)), sequence=[*sequences])
    columns = ("--sequence-column", "sequence", "--id-column", "id", *OPTIONS)
    run(ready_artifact, table, "-o", f"{tmp_path}/whole/", *columns)
    run(ready_artifact, table, "-o", f"{tmp_path}/out/", *columns)
    journal = tmp_path / "out" / "_journal.jsonl"
    first = journal.read_bytes().splitlines(keepends=True)[0]
    journal.write_bytes(first)
    assert json.loads(first)["end"] < 150
    result = run(ready_artifact, table, "-o", f"{tmp_path}/out/", *columns, "--resume")
    assert result.exit_code == 0, result.output
    tables = [
        pyarrow.concat_tables(map(parquet.read_table, sorted((tmp_path / name).glob("part-*"))))
        for name in ("whole", "out")
    ]
    assert tables[0] == tables[1]
    other = run(ready_artifact, table, "-o", f"{tmp_path}/out/", *columns[:2], *OPTIONS)
    assert "--id-column is None, it was id" in other.stderr
