from pathlib import Path

import pytest

from exporter.own_proteins import read_sequences
from runtime.errors import InputError
from runtime.readers.records import RecordOptions


@pytest.fixture
def fasta(tmp_path: Path) -> str:
    path = tmp_path / "mine.fasta"
    path.write_text(">a\nMK<mask>T\n>b\nmkt*\n>c\nM1J\n")
    return str(path)


def test_as_embed_reads_them(fasta: str) -> None:
    said: list[str] = []
    options = RecordOptions(upper=True, strip_stop=True)
    assert read_sequences(fasta, options, True, said.append) == ["MK<mask>T", "MKT"]
    (line,) = said
    assert line.startswith("warning: 1 records are left out, the first: record 'c' (")
    options = RecordOptions("unk", upper=True, strip_stop=True)
    assert read_sequences(fasta, options, False, said.append)[2] == "M<unk><unk>"
    assert len(said) == 1


def test_a_bad_record_stops(fasta: str) -> None:
    with pytest.raises(InputError, match=r"record 'b' \(.*, line 3\): character 'm'"):
        read_sequences(fasta, RecordOptions(), False, lambda line: None)


def test_nothing_is_left(fasta: str) -> None:
    Path(fasta).write_text(">c\nM1J\n")
    with pytest.raises(InputError, match="none of 1 records can be run"):
        read_sequences(fasta, RecordOptions(), True, lambda line: None)
