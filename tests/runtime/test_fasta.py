"""Files as people have them: every encoding, line end, compression, and what is no FASTA."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backports import zstd
from Bio.SeqIO.FastaIO import SimpleFastaParser
from hypothesis import given
from hypothesis import strategies as st

import runtime
from runtime.readers import fasta
from runtime.readers.decoding import decoded
from runtime.readers.fasta import check_readable, read_fasta
from runtime.readers.nucleotides import watch_for_nucleotides

TWO = b">a first\nMKTAY\nIAK\n>b\nGGAVL\n"
READ = [("a", "MKTAYIAK", 1), ("b", "GGAVL", 4)]

Write = Callable[[bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: bytes) -> str:
        (tmp_path / "x.fasta").write_bytes(content)
        return str(tmp_path / "x.fasta")

    return write


def read(path: str) -> list[tuple[str, str, int]]:
    check_readable([path])
    return [(record.id, record.sequence, record.line) for record in read_fasta([path])]


def error_of(path: str) -> str:
    with pytest.raises(runtime.InputError) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert path in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        TWO,
        TWO[:-1],
        TWO.replace(b"\n", b"\r\n"),
        TWO.replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + TWO,
        TWO.decode().encode("utf-16"),
        b"\xfe\xff" + TWO.decode().encode("utf-16-be"),
        TWO.decode().encode("utf-16-le"),
        TWO.decode().encode("utf-32"),
    ],
    ids=["lf", "no end", "crlf", "cr", "bom", "utf-16", "utf-16-be", "no bom", "utf-32"],
)
def test_line_ends_and_encodings(write: Write, content: bytes) -> None:
    assert read(write(content)) == READ


@pytest.mark.parametrize(
    ("content", "records"),
    [
        (">α_β é\nMK\n>蛋白 x\nGG\n".encode(), [("α_β", "MK", 1), ("蛋白", "GG", 3)]),
        (b"> name x\nMK\n>\nGG\n>  \nLL", [("name", "MK", 1), ("record_2", "GG", 3),
                                           ("record_3", "LL", 5)]),
        (b"\n\n \t\n>a\n\nM K\n\tT \n\n", [("a", "MKT", 4)]),
        (b"; old style\n# made by x\n>a\nMK\n# more\n>b\nGG\n", [("a", "MK", 3), ("b", "GG", 6)]),
        (b">a\nMK\n\xef\xbb\xbf>joined\nGG\n", [("a", "MK", 1), ("joined", "GG", 3)]),
        (b">a of nr\x01b of nr\nMK\n", [("a", "MK", 1)]),
        (b">a\tb\nMK\n>>c\nGG\n", [("a", "MK", 1), (">c", "GG", 3)]),
        (b">a\n>b\n>", [("a", "", 1), ("b", "", 2), ("record_3", "", 3)]),
    ],
)  # fmt: skip
def test_headers_blanks_and_comments(
    write: Write, content: bytes, records: list[tuple[str, str, int]]
) -> None:
    assert read(write(content)) == records


def test_a_line_of_megabytes(write: Write) -> None:
    sequence = "MKTAYIAKQR" * 500_000
    records = read(write(f">a\n{sequence}\n>b\nM\n".encode()))
    assert records == [("a", sequence, 1), ("b", "M", 3)]


TEXT = st.text(st.sampled_from("MK> \n\rα"), max_size=60)


@given(TEXT, st.sampled_from([1, 2, 3, 7]))
def test_equals_biopython_in_blocks_of_any_size(text: str, block_bytes: int) -> None:
    """A header, a line end or a letter may be cut between two blocks."""
    content = f">a\n{text}".encode()
    blocks = (content[i : i + block_bytes] for i in range(0, len(content), block_bytes))
    found = [
        (record.header.rstrip(), record.sequence)
        for line, texts in fasta._split(decoded(blocks))
        for record in fasta.Pieces("", 1, line, texts).records()
    ]
    expected = SimpleFastaParser(io.StringIO(content.decode(), newline=None))
    assert found == list(expected)


COMPRESSORS = [gzip.compress, bz2.compress, lzma.compress, zstd.compress]


@pytest.mark.parametrize("compress", COMPRESSORS)
class TestCompressed:
    def test_one_or_several_streams(self, write: Write, compress: Callable[[bytes], bytes]) -> None:
        assert read(write(compress(TWO))) == READ
        assert len(read(write(compress(TWO) + compress(TWO)))) == 4

    def test_zeros_at_the_end_are_padding(
        self, write: Write, compress: Callable[[bytes], bytes]
    ) -> None:
        for zeros in (1, 10_240):
            assert read(write(compress(TWO) + bytes(zeros))) == READ

    def test_truncated(self, write: Write, compress: Callable[[bytes], bytes]) -> None:
        for cut in (1, 9, len(compress(TWO)) - 7):
            assert "data are truncated. Copy or download" in error_of(write(compress(TWO)[:-cut]))

    @pytest.mark.parametrize("garbage", [b"\n", b"and more", b"\0\0x", TWO])
    def test_garbage_at_the_end_is_not_called_truncated(
        self, write: Write, compress: Callable[[bytes], bytes], garbage: bytes
    ) -> None:
        error = error_of(write(compress(TWO) + garbage))
        assert "garbage at the end" in error
        assert "after 1 records" in error
        assert "truncated" not in error

    def test_damaged(self, write: Write, compress: Callable[[bytes], bytes]) -> None:
        content = bytearray(compress(TWO * 100))
        content[len(content) // 2] ^= 0xFF
        content[-7] ^= 0xFF
        assert "data are damaged: " in error_of(write(bytes(content)))


def test_a_truncated_file_says_how_far_it_got(write: Write) -> None:
    many = b"".join(b">p%d\n%s\n" % (i, os.urandom(40).hex().encode()) for i in range(20_000))
    whole = gzip.compress(many)
    error = error_of(write(whole[: len(whole) // 2]))
    count = int(error.split(" after ")[1].split()[0])
    assert 9_000 < count < 11_000


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.fasta", TWO)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("x.fasta")
        member.size = len(TWO)
        archive.addfile(member, io.BytesIO(TWO))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"LOCUS       AB000001  200 bp\nDEFINITION x\n", "it is a GenBank file. Convert it"),
        (b"ID   X56734; SV 1; linear;\n", "it is an EMBL or UniProt flat file. Convert it"),
        (b"@r1\nACGT\n+\nIIII\n", "it is a FASTQ file. It holds reads"),
        (b"@HD\tVN:1.6\tSO:coordinate\n", "it is a SAM file"),
        (b"r\t0\tc\t1\t60\t4M\t*\t0\t0\tACGT\tIIII\n", "it is a SAM file"),
        (b"##gff-version 3\nc\tx\tCDS\t1\t9\t.\t+\t0\tID=1\n", "it is a GFF file"),
        (b"c\tx\tCDS\t1\t9\t.\t+\t0\tID=1\n", "it is a GFF file"),
        (b"##fileformat=VCFv4.2\n#CHROM\tPOS\nc\t1\n", "it is a VCF file"),
        (b"HEADER    HYDROLASE\n", "it is a PDB file"),
        (b"ATOM      1  N   MET A   1\n", "it is a PDB file"),
        (b"data_1ABC\n#\nloop_\n", "it is an mmCIF file"),
        (b"id,sequence\na,MKT\n", "it is a table (CSV or TSV)"),
        (b"id\tsequence\na\tMKT\n", "it is a table (CSV or TSV)"),
        (b"\n<!DOCTYPE html>\n<html>404</html>\n", "it is a web page (HTML)"),
        (b"<?xml version='1.0'?>\n", "it is an XML file"),
        (b'{"a": 1}\n', "it is a JSON file"),
        (b"CLUSTAL W (1.83)\n", "it is a Clustal alignment"),
        (b"# STOCKHOLM 1.0\n#=GF ID x\na MKT\n", "it is a Stockholm alignment"),
        (b" 5 42\nabc  MKT\n", "it is a PHYLIP alignment"),
        (b">P1;CRAB_ANAPL\nALPHA CRYSTALLIN\nMDIT*\n", "it is a PIR file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"MKTAYIAK\nGGAVL\n", "sequences without headers. Put a line '>name'"),
        (b"Dear all,\nhello\n", "line 1 is 'Dear all,', and FASTA begins with '>'"),
        (b"# note\n\n-->\n", "line 3 is '-->', and"),
        (zipped(), "it is a zip archive"),
        (tarred(), "it is a tar archive. Unpack it"),
        (b"PAR1\x15\x04\x15\0", "it is a Parquet file"),
        (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file"),
        (b"\x93NUMPY\1\0", "it is a NumPy file"),
        (b"%PDF-1.4\n", "it is a PDF document"),
        (gzip.compress(gzip.compress(TWO)), "it is compressed twice"),
        (bytes(4096), "it is a binary file"),
        (bytes(range(1, 255)) * 9, "it is a binary file"),
        (TWO.decode().encode("utf-16")[:-1], "UTF-16 text is damaged or truncated"),
        (b"", "is empty: it holds no FASTA record"),
        (b"\n \r\n\t", "is empty: it holds no FASTA record"),
        (b"# a comment", "is empty: it holds no FASTA record"),
        (gzip.compress(b""), "is empty: it holds no FASTA record"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_what_is_no_fasta_is_named(write: Write, content: bytes, message: str) -> None:
    assert message in error_of(write(content))


def test_a_large_file_that_is_no_fasta_is_not_read_to_its_end() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"chr1\tx\tCDS\t1\t9\t.\t+\t0\tID=1\n" * 100

    with pytest.raises(runtime.InputError, match="it is a GFF file"):
        list(fasta._split(decoded(endless())))


def test_a_block_may_be_empty() -> None:
    """A decompressor gives nothing for some of what it is fed."""
    blocks = iter([b">a\nMK\n", b"", b">b\nGG"])
    assert [texts for _, texts in fasta._split(decoded(blocks))] == [["a\nMK"], ["b\nGG"]]


def test_a_pipe_that_says_little_is_read_as_far_as_it_went() -> None:
    """The first record is known when the second begins; nothing waits for a full block."""

    def slow() -> Iterator[bytes]:
        yield b">a\n"
        yield b"MK\n>"
        raise AssertionError("read on")

    assert next(fasta._split(decoded(slow()))) == (1, ["a\nMK"])


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["no.fasta"], "cannot read no.fasta: no such file"),
        (["/proc"], "cannot read /proc: it is a folder. Give the FASTA files in it"),
        (["-", "-"], r"standard input \(-\) is given twice"),
        (["a\0b"], r"cannot read a\\x00b: "),
        (["/dev/null"], "/dev/null is empty: it holds no FASTA record"),
        (["/proc/self/mem"], "cannot read /proc/self/mem"),
    ],
)
def test_what_cannot_be_read(paths: list[str], message: str) -> None:
    with pytest.raises(runtime.InputError, match=message):
        check_readable(paths)
        list(read_fasta(paths))


class TestNucleotides:
    def warnings(self, sequences: list[str]) -> list[str]:
        said: list[str] = []
        records = [runtime.Record(str(i), sequence) for i, sequence in enumerate(sequences)]
        assert list(watch_for_nucleotides(records, said.append)) == records
        return said

    def test_are_told_once(self) -> None:
        for sequences in (["ACGTN" * 20], ["acgu" * 30] * 250):
            (said,) = self.warnings(sequences)
            assert "seem to be nucleotides. ESM-2 reads proteins: translate" in said

    def test_proteins_and_short_peptides_are_not(self) -> None:
        assert self.warnings(["GATTACA"]) == []
        assert self.warnings(["ACGT" * 100, "MKT"]) == []
        assert self.warnings([]) == []
