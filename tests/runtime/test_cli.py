import csv
import gzip
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from backports import zstd
from click.testing import CliRunner, Result
from pyarrow import parquet

import runtime
from exporter.publish import writable_copy
from runtime import embed_files
from runtime.cli import main
from runtime.embed_stream import stored
from runtime.runner import Embedding
from tests.conftest import random_sequence

FASTA = """>sp|P1 the first
MKTAYIAKQRQISFVKSHFSRQ
LEERLGLIEV
>two
GGAVL<mask>KW
>three
M
"""
ROOT = Path(__file__).parents[2]
IDS = ["sp|P1", "two", "three"]


def run(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "x.fasta"
    path.write_text(FASTA)
    return path


@pytest.fixture(scope="module")
def expected(artifact: Path) -> np.ndarray:
    sequences = ["MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV", "GGAVL<mask>KW", "M"]
    with runtime.load(artifact, "onnx") as engine:
        rows = [
            engine.run(runtime.PackedBatch.from_sequences([s])).representations[2][1:-1].mean(0)
            for s in sequences
        ]
    return np.stack(rows)


def read(path: Path) -> tuple[list[str], np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path) as file:
            return file["ids"].tolist(), file["embeddings"]
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return [name.decode() for name in file["ids"]], file["embeddings"][:]
    table = parquet.read_table(path)
    return table["ids"].to_pylist(), np.array(table["embeddings"].to_pylist(), dtype=np.float32)


def ids_of(path: Path) -> list[str]:
    return read(path)[0]


def read_residues(path: Path) -> list[np.ndarray]:
    if path.suffix == ".parquet":
        rows = parquet.read_table(path)["embeddings"].to_pylist()
        return [np.array(row, dtype=np.float32).reshape(-1, 48) for row in rows]
    with np.load(path) if path.suffix == ".npz" else h5py.File(path) as file:
        return np.split(file["embeddings"][:], file["offsets"][1:-1])


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".h5"])
@pytest.mark.parametrize("engine", ["onnx", "torchscript"])
class TestEmbed:
    def test_every_format(
        self, artifact: Path, fasta: Path, expected: np.ndarray, suffix: str, engine: str
    ) -> None:
        output = fasta.with_suffix(suffix)
        result = run("embed", artifact, fasta, "-o", output, "--engine", engine)
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith(f"{output}: 3 proteins, ")
        assert "weights are random" in result.stderr
        ids, embeddings = read(output)
        assert ids == IDS
        np.testing.assert_allclose(embeddings, expected, atol=2e-5)
        assert {path.name for path in fasta.parent.iterdir()} == {fasta.name, output.name}


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".h5"])
def test_many_proteins_without_pooling(artifact: Path, tmp_path: Path, suffix: str) -> None:
    """More rows than are written at once, so that offsets go on from one write to the next."""
    random = np.random.default_rng(0)
    sequences = [random_sequence(random, int(n)) for n in random.integers(1, 4, 1500)]
    lines = [f">p{i}\n{sequence}\n" for i, sequence in enumerate(sequences)]
    (tmp_path / "many.fasta").write_text("".join(lines))
    output = tmp_path / f"many{suffix}"
    result = run("embed", artifact, tmp_path / "many.fasta", "-o", output, "--pool", "none")
    assert result.exit_code == 0, result.output
    rows = read_residues(output)
    assert [len(row) for row in rows] == [len(sequence) for sequence in sequences]
    with runtime.load(artifact, "onnx") as engine:
        batch = runtime.PackedBatch.from_sequences([sequences[1400]])
        alone = engine.run(batch).representations[2]
    np.testing.assert_allclose(rows[1400], alone[1:-1], atol=2e-5)


class TestInputs:
    @pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd.compress])
    @pytest.mark.parametrize("through_stdin", [True, False])
    def test_compressed_and_piped(
        self, artifact: Path, tmp_path: Path, compress: Callable[[bytes], bytes],
        through_stdin: bool,
    ) -> None:  # fmt: skip
        data = compress(FASTA.encode())
        source = tmp_path / "input"
        source.write_bytes(data)
        output = tmp_path / "x.npz"
        # CliRunner's stdin is no real file, so a real process takes the pipe.
        command = [sys.executable, "-m", "runtime.cli", "embed", str(artifact),
                   "-" if through_stdin else str(source), "-o", str(output)]  # fmt: skip
        with source.open("rb") as stdin:
            result = subprocess.run(command, stdin=stdin, capture_output=True, timeout=120)
        assert result.returncode == 0, result.stderr.decode()
        assert read(output)[0] == IDS

    def test_several_files_and_repeated_ids(self, artifact: Path, fasta: Path) -> None:
        output = fasta.with_suffix(".npz")
        result = run("embed", artifact, fasta, fasta, "-o", output)
        assert result.exit_code == 0
        assert read(output)[0] == IDS * 2
        assert "repeated ids: 3 (sp|P1, two, three); every record is kept" in result.stderr

    def test_empty_records_and_long_proteins(self, artifact: Path, tmp_path: Path) -> None:
        (tmp_path / "x.fasta").write_text(">none\n>long\n" + "M" * 50 + "\n>short\nMK\n")
        output = tmp_path / "x.npz"
        result = run("embed", artifact, tmp_path / "x.fasta", "-o", output, "--max-tokens", 20)
        assert result.exit_code == 0
        assert "records without residues: 1 (none); their mean embedding is NaN" in result.stderr
        assert "proteins longer than 20 tokens: 1 (long); each ran alone" in result.stderr
        ids, embeddings = read(output)
        assert ids == ["none", "long", "short"]
        assert np.isnan(embeddings).all(axis=1).tolist() == [True, False, False]

    def test_unknown_characters(self, artifact: Path, tmp_path: Path) -> None:
        (tmp_path / "x.fasta").write_text(">a\nMKJ*\n")
        output = tmp_path / "x.npz"
        arguments = ("embed", artifact, tmp_path / "x.fasta", "-o", output)
        assert "line 1): character 'J' at position 3" in run(*arguments).stderr
        assert not output.exists()
        result = run(*arguments, "--unknown", "x")
        assert result.exit_code == 0
        assert "characters outside the alphabet replaced, in proteins: 1" in result.stdout

    def test_json(self, artifact: Path, fasta: Path) -> None:
        output = fasta.with_suffix(".npz")
        result = run("embed", artifact, fasta, "-o", output, "--json", "--v1-attention",
                     "--engine", "torchscript", "--device", "cpu")  # fmt: skip
        summary = json.loads(result.stdout)
        assert summary["proteins"] == 3
        assert summary["engine"]["attention"] == "standard"

    def test_a_log_file_gets_a_line_now_and_then(
        self, artifact: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output = fasta.with_suffix(".npz")
        assert "after" not in run("embed", artifact, fasta, "-o", output).stderr
        monkeypatch.setattr("runtime.progress.LINE_SECONDS", 0.0)
        said = run("embed", artifact, fasta, "-o", output).stderr
        assert "3 proteins, 47 tokens (100%) after 0 s" in said.splitlines()
        assert not set(said) & {"\r", "\x1b"}

    def test_a_bar_is_made_for_a_terminal_alone(
        self, artifact: Path, fasta: Path, fresh_python: Any
    ) -> None:
        code = "import sys; from runtime.cli import main; main(sys.argv[1:])"
        output = fasta.with_suffix(".npz")
        result = fresh_python(code, "embed", artifact, fasta, "-o", output, blocked=("tqdm",))
        assert result.returncode == 0, result.stderr

    def test_debug_says_one_line_for_each_pack(self, artifact: Path, fasta: Path) -> None:
        command = [sys.executable, "-m", "runtime.cli", "embed", str(artifact), str(fasta),
                   "-o", str(fasta.with_suffix(".npz")), "--debug"]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert "pack 1: 3 proteins, 47 tokens, longest 34, packing efficiency" in result.stderr


BAD = b""">good first
MKTAYIAK
>J|x
MKJT
>lower
mkt
>caf\xe9 x
MKT
>stop
MK*
>=1+1
GG<pad>
>last
GGAVL
"""


class TestBadRecords:
    @pytest.fixture
    def bad(self, tmp_path: Path) -> Path:
        path = tmp_path / "bad.fasta"
        path.write_bytes(BAD)
        return path

    def test_stop_names_the_place_and_the_remedies(
        self, tiny_artifact: Path, bad: Path, tmp_path: Path
    ) -> None:
        result = run("embed", tiny_artifact, bad, "-o", tmp_path / "x.npz")
        assert result.exit_code == 2
        (error,) = result.stderr.splitlines()  # before the engine says that it is loaded
        assert error.startswith(
            f"error: record 'J|x' ({bad}, line 3): character 'J' at position 3 is not in"
        )
        assert "--unknown x" in error
        assert "--on-error skip" in error
        assert "4 more cannot be run" in error
        assert list(tmp_path.iterdir()) == [bad]

    @pytest.mark.parametrize("suffix", [".npz", ".parquet", ".h5"])
    def test_skip_writes_the_others_and_a_table(
        self, tiny_artifact: Path, bad: Path, tmp_path: Path, suffix: str
    ) -> None:
        output = tmp_path / f"x{suffix}"
        result = run("embed", tiny_artifact, bad, "-o", output, "--on-error", "skip")
        assert result.exit_code == 3, result.output
        assert f"records rejected, listed in {output}.rejected.tsv: 5" in result.stdout
        assert ids_of(output) == ["good", "last"]
        table = (tmp_path / f"x{suffix}.rejected.tsv").read_text()
        rows = list(csv.DictReader(io.StringIO(table), dialect="excel-tab"))
        assert [(row["record"], row["line"], row["position"]) for row in rows] == [
            ("J|x", "3", "3"), ("lower", "5", "1"), ("caf\\xe9", "7", ""), ("stop", "9", "3"),
            ("=1+1", "11", "3"),
        ]  # fmt: skip
        assert list(rows[0]) == ["record", "line", "position", "reason"]
        assert rows[2]["reason"] == "byte 0xE9 at position 4 of the header is not UTF-8"

    def test_what_is_taken_is_counted_and_said(
        self, tiny_artifact: Path, bad: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "x.npz"
        arguments = ("embed", tiny_artifact, bad, bad, "-o", output, "--on-error", "skip",
                     "--upper", "--strip-stop", "--unknown", "x")  # fmt: skip
        result = run(*arguments)
        assert result.exit_code == 3
        for line in (
            "  lower case taken as upper case, in proteins: 2",
            "  a * at the end removed, in proteins: 2",
            "  characters outside the alphabet replaced, in proteins: 2",
            f"  records rejected, listed in {output}.rejected.tsv: 4",
        ):
            assert line in result.stdout.splitlines()
        summary = json.loads(run(*arguments, "--json").stdout)
        assert summary["rejected"] == 4
        assert summary["rejected_file"] == f"{output}.rejected.tsv"
        assert (summary["lower_case"], summary["stops"], summary["unknown"]) == (2, 2, 2)
        table = (tmp_path / "x.npz.rejected.tsv").read_text().splitlines()
        assert [row.split("\t")[-1] for row in table] == ["file", *[str(bad)] * 4]

    @pytest.mark.parametrize("on_error", ["skip", "stop"])
    def test_an_earlier_table_goes_when_nothing_is_rejected(
        self, tiny_artifact: Path, fasta: Path, on_error: str
    ) -> None:
        output = fasta.with_suffix(".npz")
        table = Path(f"{output}.rejected.tsv")
        table.write_text("of an earlier run")
        assert (
            run("embed", tiny_artifact, fasta, "-o", output, "--on-error", on_error).exit_code == 0
        )
        assert not table.exists()

    def test_nothing_is_left(self, tiny_artifact: Path, tmp_path: Path) -> None:
        (tmp_path / "x.fasta").write_text(">a\nMJ\n>b\nM*\n")
        os.mkfifo(tmp_path / "fifo")
        output = tmp_path / "x.npz"
        arguments = ("-o", output, "--on-error", "skip")
        expected = "none of 2 records can be run, so nothing is written. record 'a' ("
        result = run("embed", tiny_artifact, tmp_path / "x.fasta", *arguments)
        assert (result.exit_code, expected in result.stderr) == (2, True)
        feeding = threading.Thread(target=(tmp_path / "fifo").write_text, args=[">a\nMJ\n>b\nM*\n"])
        feeding.start()
        result = run("embed", tiny_artifact, tmp_path / "fifo", *arguments)
        feeding.join()
        assert (result.exit_code, expected in result.stderr) == (2, True)
        assert {path.name for path in tmp_path.iterdir()} == {"x.fasta", "fifo"}

    def test_5000_proteins_through_a_pipe(self, tiny_artifact: Path, tmp_path: Path) -> None:
        good = b"".join(b">p%d\nMKTAYIAKQR\n" % i for i in range(4999))
        command = [sys.executable, "-m", "runtime.cli", "embed", str(tiny_artifact), "-",
                   "-o", str(tmp_path / "x.npz"), "--on-error", "skip"]  # fmt: skip
        result = subprocess.run(
            command, input=good + b">last\nMKJ\n", capture_output=True, timeout=120
        )
        assert result.returncode == 3, result.stderr.decode()
        assert len(ids_of(tmp_path / "x.npz")) == 4999
        assert "last\t9999\t3\t" in (tmp_path / "x.npz.rejected.tsv").read_text()

    def test_nucleotides_are_told(self, tiny_artifact: Path, tmp_path: Path) -> None:
        (tmp_path / "x.fasta").write_text(f">gene\n{'ACGTGA' * 20}\n")
        result = run("embed", tiny_artifact, tmp_path / "x.fasta", "-o", tmp_path / "x.npz")
        assert result.exit_code == 0
        assert "they seem to be nucleotides" in result.stderr


class TestStore:
    @pytest.mark.parametrize("output", ["x.npz", "x.h5", "x.parquet"])
    def test_half_the_bytes_rounded_once(
        self, artifact: Path, fasta: Path, tmp_path: Path, output: str
    ) -> None:
        run("embed", artifact, fasta, "-o", tmp_path / "whole.npz")
        run("embed", artifact, fasta, "-o", tmp_path / output, "--store", "float16")
        with np.load(tmp_path / "whole.npz") as whole:
            expected = whole["embeddings"].astype(np.float16)
        if output.endswith(".parquet"):
            table = parquet.read_table(tmp_path / output)
            assert table["embeddings"].type.value_type == "halffloat"
        _, rows = read(tmp_path / output)
        assert np.array_equal(rows.astype(np.float16), expected)

    def test_what_is_too_large_is_named(self) -> None:
        embeddings = iter([Embedding("huge", 3, np.array([1, 7e4], np.float32))])
        with pytest.raises(runtime.NonFiniteError, match="'huge' has numbers up to 7e.04"):
            list(stored(embeddings, "float16"))


class TestLongProteins:
    """Of 32, 8 and 1 residues."""

    def test_cut(self, artifact: Path, fasta: Path, tmp_path: Path) -> None:
        result = run(
            "embed", artifact, fasta, "-o", tmp_path / "x.npz", "--max-length", 8, "--long",
            "truncate", "--json",
        )  # fmt: skip
        assert json.loads(result.stdout)["cut"] == 1
        assert "1 proteins are longer than 8 residues: their ends are cut off" in result.stderr
        with np.load(tmp_path / "x.npz") as cut:
            assert cut["num_tokens"].tolist() == [10, 10, 3]
            short = tmp_path / "short.fasta"
            short.write_text(FASTA.replace("MKTAYIAKQRQISFVKSHFSRQ\nLEERLGLIEV", "MKTAYIAK"))
            run("embed", artifact, short, "-o", tmp_path / "short.npz")
            with np.load(tmp_path / "short.npz") as expected:
                assert np.array_equal(cut["embeddings"], expected["embeddings"])

    def test_an_error(self, artifact: Path, fasta: Path, tmp_path: Path) -> None:
        result = run("embed", artifact, fasta, "-o", tmp_path / "x.npz", "--max-length", 8)
        assert result.exit_code == 2
        assert "32 residues are more than 8 (--max-length). Run such proteins" in result.stderr

    @pytest.mark.parametrize(
        ("least", "free", "told"),
        [
            (10**9, 10**12, None),
            (1, 10**12, "the longest protein has 1,102 tokens: it takes up to 0.0 GB\n"),
            (1, 1000, "0.0 GB, and 0.0 GB are free. --max-length and --long make it shorter\n"),
        ],
    )  # fmt: skip
    def test_what_they_take_is_said(
        self, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int,
        free: int, told: str | None,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(embed_files, "LEAST_TOLD", least)
        monkeypatch.setattr(embed_files, "usable_memory", lambda: free)
        long = tmp_path / "long.fasta"
        long.write_text(f">a\n{'MK' * 550}\n")
        said = run("embed", artifact, long, "-o", tmp_path / "x.npz", "--engine", "onnx").stderr
        assert "1 proteins are longer than 1,022 residues, which ESM-2 was trained on" in said
        assert told in said if told else "the longest" not in said

    def test_in_windows(self, artifact: Path, fasta: Path, tmp_path: Path) -> None:
        options = ("--max-length", 8, "--long", "window", "--pool", "none")
        result = run("embed", artifact, fasta, "-o", tmp_path / "x.parquet", *options)
        assert "1 proteins are longer than 8 residues: they are run in windows" in result.stderr
        assert "  run in windows of --max-length, proteins: 1\n" in result.stdout
        rows = parquet.read_table(tmp_path / "x.parquet")
        assert rows["num_tokens"].to_pylist() == [34, 10, 3]
        assert [len(vectors) for vectors in rows["embeddings"].to_pylist()] == [32, 8, 1]

    @pytest.mark.parametrize("output", ["x.npz", "folder"])
    def test_left_out(self, artifact: Path, fasta: Path, tmp_path: Path, output: str) -> None:
        options = ("--max-length", 8, "--long", "skip")
        result = run("embed", artifact, fasta, "-o", tmp_path / output, *options)
        assert result.exit_code == 3
        assert "records rejected, listed in" in result.stdout

    def test_skipping_them_skips_no_others(
        self, artifact: Path, fasta: Path, tmp_path: Path
    ) -> None:
        fasta.write_text(FASTA + ">wrong\nMKJ\n")
        options = ("--max-length", 8, "--long", "skip")
        result = run("embed", artifact, fasta, "-o", tmp_path / "x.npz", *options)
        assert result.exit_code == 2
        assert "record 'wrong'" in result.stderr

    def test_nor_where_a_pipe_is_read_when_it_is_run(self, artifact: Path, tmp_path: Path) -> None:
        command = ["embed", artifact, "-", "-o", tmp_path / "x.npz", "--max-length", 8]
        result = subprocess.run(
            [sys.executable, "-m", "runtime.cli", *map(str, command), "--long", "skip"],
            input=FASTA + ">wrong\nMKJ\n", capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 2
        assert "record 'wrong'" in result.stderr
        assert not (tmp_path / "x.npz").exists()

    def test_none_is_left(self, artifact: Path, tmp_path: Path) -> None:
        (tmp_path / "long.fasta").write_text(">a\nMKTAYIAKQR\n")
        options = ("--max-length", 8, "--long", "skip")
        result = run("embed", artifact, tmp_path / "long.fasta", "-o", tmp_path / "x.npz", *options)
        assert "none of 1 records can be run" in result.stderr


class TestUserErrors:
    def one_line(self, result: Result) -> str:
        assert result.exit_code == 2, result.output
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert "Traceback" not in result.output
        return errors[0]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("empty.fasta", b"", "is empty: it holds no FASTA record"),
            ("blank.fasta", b"\n\n", "is empty: it holds no FASTA record"),
            ("page.fasta", b"<html>not found</html>\n", "not FASTA: it is a web page"),
            ("binary.fasta", b"\x83\x00\xff" * 50, "not FASTA: it is a binary file"),
            ("cut.fasta.gz", gzip.compress(FASTA.encode())[:-12], "cannot read"),
            ("bad.fasta.gz", gzip.compress(FASTA.encode())[:12] + b"x" * 99, "cannot read"),
            ("bad.fasta.zst", zstd.compress(FASTA.encode())[:6] + b"x" * 99, "cannot read"),
            ("cut.fasta.zst", zstd.compress(FASTA.encode())[:-12], "cannot read"),
        ],
        # Not the content: gzip writes the time into it, and two workers would name the tests apart.
        ids=lambda value: "" if isinstance(value, bytes) else None,
    )
    def test_bad_files(
        self, artifact: Path, tmp_path: Path, name: str, content: bytes, message: str
    ) -> None:
        (tmp_path / name).write_bytes(content)
        result = run("embed", artifact, tmp_path / name, "-o", tmp_path / "out.npz")
        error = self.one_line(result)
        assert message in error
        assert name in error
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_missing_input(self, artifact: Path, tmp_path: Path) -> None:
        result = run("embed", artifact, tmp_path / "no.fasta", "-o", tmp_path / "out.npz")
        assert "no such file" in self.one_line(result)

    @pytest.mark.parametrize(
        ("output", "message"),
        [
            ("out.csv", "one of .npz, .parquet, .h5"),
            ("no/such/out.npz", "does not exist"),
            ("folder.npz", "it is a folder"),
            ("/proc/out.npz", "/proc"),
        ],
    )
    def test_bad_outputs(self, artifact: Path, fasta: Path, output: str, message: str) -> None:
        (fasta.parent / "folder.npz").mkdir()
        assert message in self.one_line(run("embed", artifact, fasta, "-o", fasta.parent / output))

    def test_a_format_whose_library_is_missing(
        self, artifact: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        result = run("embed", artifact, fasta, "-o", fasta.with_suffix(".parquet"))
        assert "pyarrow is not installed. pip install pyarrow, or write .npz" in self.one_line(
            result
        )

    def test_not_an_artifact(self, fasta: Path) -> None:
        fasta.write_text("no FASTA: is not read before the artifact is known to be one")
        result = run("embed", fasta.parent, fasta, "-o", fasta.with_suffix(".npz"))
        assert "is not an artifact" in self.one_line(result)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--v1-attention", "--attention", "flash"), "--v1-attention is --attention standard"),
            (
                ("--attention", "flash", "--device", "cpu"),
                "with attention 'flash': it knows 'auto'",
            ),
            (("--cuda-graphs", "--device", "cpu"), "with CUDA graphs: "),
        ],
    )
    def test_what_a_cpu_has_not(
        self, artifact: Path, fasta: Path, options: tuple[str, ...], message: str
    ) -> None:
        result = run("embed", artifact, fasta, "-o", fasta.with_suffix(".npz"), *options)
        assert message in self.one_line(result)

    def test_a_layer_that_was_not_exported(self, artifact: Path, fasta: Path) -> None:
        result = run("embed", artifact, fasta, "-o", fasta.with_suffix(".npz"), "--layer", 5)
        assert "exports [0, 1, 2]" in self.one_line(result)

    def test_an_old_output_survives_a_failure(self, artifact: Path, fasta: Path) -> None:
        output = fasta.with_suffix(".npz")
        output.write_bytes(b"precious")
        with fasta.open("a") as file:
            file.write(">bad\nMJ\n")
        self.one_line(run("embed", artifact, fasta, "-o", output))
        assert output.read_bytes() == b"precious"


class TestInfo:
    def test_says_what_there_is(self, artifact: Path) -> None:
        result = run("info", artifact)
        assert result.exit_code == 0
        assert "RANDOM WEIGHTS" in result.stdout
        assert "onnx: model.onnx, passed parity: worst relative L2" in result.stdout
        assert "2 layers, 48 wide, 4 heads of 12" in result.stdout

    def test_json(self, artifact: Path) -> None:
        assert json.loads(run("info", artifact, "--json").stdout)["dtype"] == "float32"

    def test_a_damaged_artifact(self, artifact: Path, tmp_path: Path) -> None:
        copy = writable_copy(artifact, tmp_path / "copy")
        (copy / "model.ts").write_bytes(b"x")
        result = run("info", copy)
        assert result.exit_code == 2
        assert "model.ts has 1 bytes" in result.stderr


@pytest.mark.parametrize("command", ["info", "selftest", "embed"])
def test_where_nothing_but_the_output_can_be_written(
    tiny_artifact: Path, tmp_path: Path, read_only: Any, as_nobody: Any, command: str
) -> None:
    """A read-only artifact and working directory, another user, no home, no environment."""
    folder = read_only(tiny_artifact)
    fasta, out = tmp_path / "x.fasta", tmp_path / "out"
    fasta.write_text(FASTA)
    out.mkdir()
    out.chmod(0o777)
    more = ["-", "-o", out / "x.npz"] if command == "embed" else []
    with fasta.open() as stdin:
        result = as_nobody(
            "env", "-i", f"PYTHONPATH={ROOT}", sys.executable,
            "-m", "runtime.cli", command, folder, *more, cwd=folder, stdin=stdin,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    if command == "embed":
        assert read(out / "x.npz")[0] == IDS


def test_memory_that_runs_out_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("runtime.manifest.read", exhausted)
    result = run("info", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: out of memory. ")
