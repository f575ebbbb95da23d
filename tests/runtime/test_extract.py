"""``esm2-run extract`` against what fair-esm's ``scripts/extract.py`` does, done here by eager."""

import csv
import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from esm import FastaBatchedDataset

import runtime
from exporter.model.reference import Reference
from exporter.parity.rules.budgets import FLOAT32_SHALLOW
from runtime.cli import main
from runtime.extract import run as extract_run
from runtime.extract.labels import FileNames, check_labels
from runtime.extract.wanted import Wanted
from runtime.readers.records import Record
from tests.conftest import random_sequence

# Both round.
RELATIVE_L2 = 2 * FLOAT32_SHALLOW.limit
TRUNCATION = 100
FLOAT32 = np.dtype(np.float32)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["extract", *map(str, arguments)])


def fasta_of(path: Path, records: dict[str, str]) -> Path:
    path.write_text("".join(f">{label}\n{residues}\n" for label, residues in records.items()))
    return path


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long headers, padded and tabbed ones, an empty one; equal, empty and long proteins."""
    random = np.random.default_rng(11)
    of = {
        "sp|P12345|NAME_HUMAN Some protein OS=Homo sapiens": 33, "short": 1, "  padded ": 61,
        "tab\there": 5, "": 9, "long": TRUNCATION + 40, "just": TRUNCATION, "over": TRUNCATION + 1,
    }  # fmt: skip
    records = {label: random_sequence(random, length) for label, length in of.items()}
    records |= {"equal to short": records["short"], "nothing": ""}
    return fasta_of(tmp_path_factory.mktemp("extract") / "x.fasta", records)


def by_eager(
    reference: Reference, fasta: Path, layers: list[int], include: set[str], truncation: int
) -> dict[str, dict[str, Any]]:
    """What scripts/extract.py:77-127 saves, by the name of the file; in one padded batch."""
    dataset = FastaBatchedDataset.from_file(fasta)
    convert = reference.alphabet.get_batch_converter(truncation)
    labels, strings, tokens = convert([dataset[i] for i in range(len(dataset))])
    with torch.no_grad():
        out = reference.model(tokens, repr_layers=layers)["representations"]
    files = {}
    for i, label in enumerate(labels):
        length = min(truncation, len(strings[i]))
        files[f"{label}.pt"] = result = {"label": label}
        if "per_tok" in include:
            result["representations"] = {n: x[i, 1 : length + 1] for n, x in out.items()}
        if "mean" in include:
            means = {n: x[i, 1 : length + 1].mean(0) for n, x in out.items()}
            result["mean_representations"] = means
        if "bos" in include:
            result["bos_representations"] = {n: x[i, 0] for n, x in out.items()}
    return files


def saved(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: torch.load(path) for path in folder.iterdir()}


def check_same(ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]]) -> None:
    assert sorted(ours) == sorted(theirs)
    for name, expected in theirs.items():
        found = ours[name]
        assert list(found) == list(expected), name
        assert found.pop("label") == expected.pop("label")
        for key, by_layer in expected.items():
            assert list(found[key]) == list(by_layer), (name, key)
            for layer, tensor in by_layer.items():
                check_tensor(found[key][layer], tensor, f"{name} {key} {layer}")


def check_tensor(found: torch.Tensor, expected: torch.Tensor, where: str) -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), where
    # Of its own, as a clone's: a file holds no more than what is in it.
    assert found.untyped_storage().nbytes() == 4 * found.numel(), where
    assert torch.equal(found.isnan(), expected.isnan()), where
    if found.numel() and not found.isnan().any():
        error = (found.double() - expected.double()).norm() / expected.double().norm()
        assert error <= RELATIVE_L2, f"{where}: {error:.1e}"


@pytest.mark.parametrize(
    ("layers", "include"),
    [
        ([2], {"mean"}),
        ([0, 1, 2], {"mean", "per_tok", "bos"}),
        ([1], {"bos"}),
        ([2, 0], {"per_tok"}),
        ([2, 1], {"mean", "bos"}),
        ([2], {"per_tok", "bos"}),
    ],
)
@pytest.mark.parametrize("engine", ["onnx", "torchscript"])
def test_every_file_is_as_the_script_writes_it(
    artifact: Path, reference: Reference, fasta: Path, tmp_path: Path,
    layers: list[int], include: set[str], engine: str,
) -> None:  # fmt: skip
    result = run(
        artifact, fasta, tmp_path / "out", "--repr_layers", *layers, "--include", *include,
        "--truncation_seq_length", TRUNCATION, "--toks_per_batch", 200, "--nogpu",
        "--engine", engine,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{tmp_path / 'out'}: 10 files, ")
    check_same(saved(tmp_path / "out"), by_eager(reference, fasta, layers, include, TRUNCATION))


class TestFlags:
    """As argparse takes the script's."""

    @pytest.fixture
    def taken(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
        taken: list[Any] = []

        def stop(options: Any, *_: object) -> None:
            taken.append(options)
            raise runtime.InputError("that is enough")

        monkeypatch.setattr(extract_run, "extract", stop)
        return taken

    def test_the_defaults_are_the_scripts(self, taken: list[Any]) -> None:
        run("model", "x.fasta", "out", "--include", "mean")
        (options,) = taken
        assert (options.repr_layers, options.include) == ((-1,), ("mean",))
        assert (options.records.max_length, options.records.long) == (1022, "truncate")
        assert (options.device, options.max_tokens) == ("auto", None)

    @pytest.mark.parametrize(
        "words",
        [
            "model x.fasta out --repr_layers 0 -1 --include mean bos --nogpu --toks_per_batch 99",
            "--include mean bos --repr_layers 0 -1 --nogpu --toks_per_batch 99 model x.fasta out",
            "--toks_per_batch=99 model x.fasta out --nogpu --include mean bos --repr_layers 0 -1",
            # The last counts, as with argparse.
            "model x.fasta out --repr_layers 3 --nogpu --include per_tok --toks_per_batch 99 "
            "--include mean bos --repr_layers 0 -1",
        ],
    )
    def test_options_take_several_words(self, taken: list[Any], words: str) -> None:
        run(*words.split())
        (options,) = taken
        assert (options.repr_layers, options.include) == ((0, -1), ("mean", "bos"))
        assert (options.device, options.max_tokens) == ("cpu", 99)
        assert (options.fasta, options.output) == ("x.fasta", Path("out"))

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("m x out", "Missing option '--include'"),
            ("m x out --include", "'--include' requires an argument"),
            ("m x out --include mean max", "'max' is not one of 'mean', 'per_tok', 'bos'"),
            ("m x out --include mean --repr_layers last", "'last' is not a valid integer"),
            ("m x out --include mean --nogpu --device cuda", "--nogpu is --device cpu, got"),
        ],
    )
    def test_what_is_wrong_is_said(self, taken: list[Any], words: str, message: str) -> None:
        result = run(*words.split())
        assert result.exit_code == 2
        assert message in result.stderr
        assert not taken


class TestLayers:
    def test_negative_ones_count_from_the_last(
        self, artifact: Path, fasta: Path, tmp_path: Path
    ) -> None:
        for name, layers in (("a", (0, 2)), ("b", (-1, -3, 2))):
            result = run(
                artifact, fasta, tmp_path / name, "--include", "bos", "--repr_layers", *layers
            )
            assert result.exit_code == 0, result.output
        first, second = saved(tmp_path / "a"), saved(tmp_path / "b")
        assert sorted(first) == sorted(second)
        for name, each in first.items():
            for layer, tensor in each["bos_representations"].items():
                assert torch.equal(tensor, second[name]["bos_representations"][layer])

    def test_all_from_one_forward(self, artifact: Path) -> None:
        packs = []
        with runtime.load(artifact, "onnx") as engine:
            computed = engine.run
            engine.run = lambda batch, names: packs.append(batch) or computed(batch, names)
            wanted = Wanted((0, 1, 2), frozenset(("mean", "per_tok", "bos")), 48, FLOAT32)
            batch = runtime.PackedBatch.from_sequences(["MKV", "A"])
            values = wanted.of_pack(engine, batch)
        assert len(packs) == 1
        assert [array.shape for array in values] == [(3, 5, 48), (3, 3, 48)]

    @pytest.mark.parametrize("row", [5, 6, 8], ids=["BOS", "a residue", "EOS"])
    @pytest.mark.parametrize("include", ["bos", "mean", "per_tok"])
    def test_nan_names_the_protein(self, artifact: Path, row: int, include: str) -> None:
        with runtime.load(artifact, "onnx") as engine:
            batch = runtime.PackedBatch.from_sequences(["MKV", "AA"], ["good", "bad"])
            outputs = engine.run(batch)
            outputs.tensors["representations.1"][row, 3] = np.nan
            engine.run = lambda batch, names: outputs
            with pytest.raises(runtime.NonFiniteError, match="1 of 2 proteins in a pack: 'bad'"):
                Wanted((1,), frozenset((include,)), 48, FLOAT32).of_pack(engine, batch)

    def test_rows_of_many_layers_make_small_windows(self, artifact: Path) -> None:
        with runtime.load(artifact, "onnx") as engine:
            engine.spec = replace(engine.spec, embed_dim=5120)
            windows = [
                runtime.AsyncInferenceRunner(
                    engine, 64, "none", of_pack=lambda batch: [], rows_of_token=rows
                )._window_tokens()
                for rows in (1, 3, 1000)
            ]
        assert windows == [819, 273, 64]

    def test_what_is_held_counts_every_layer(
        self, artifact: Path, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = []

        def runner(*arguments: object, **named: object) -> runtime.AsyncInferenceRunner:
            made.append((arguments[2], named["rows_of_token"]))
            return runtime.AsyncInferenceRunner(*arguments, **named)

        monkeypatch.setattr(extract_run, "AsyncInferenceRunner", runner)
        for include in ("per_tok", "mean"):
            layers = ("--repr_layers", 0, 1, 2)
            result = run(artifact, fasta, tmp_path / "out", "--include", include, *layers)
            assert result.exit_code == 0, result.output
        assert made == [("none", 3), ("mean", 3)]


class TestNames:
    @pytest.mark.parametrize(
        "label",
        ["a", "sp|P1|X_Y the first", "a\tb", "a\\b:c*?", "ünï", "x.y", "a..b", "x" * 252],
    )
    def test_labels_that_can_name_a_file_do(self, label: str) -> None:
        assert FileNames().of(label) == f"{label}.pt"

    @pytest.mark.parametrize(
        "label",
        [
            "Q9/1-10", "/etc/passwd", "../../x", "..", ".", ".hidden", "a\0b", "x" * 253,
            "ü" * 200, "😀" * 64, "a/" * 300,
        ],
    )  # fmt: skip
    def test_others_stay_in_the_folder(self, label: str, tmp_path: Path) -> None:
        name = FileNames().of(label)
        (tmp_path / name).write_text("x")
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert name.endswith(".pt")
        assert not name.startswith(".")
        assert len(name.encode()) <= 255

    def test_no_two_become_one(self) -> None:
        labels = ["a/b", "a_b", "a//b", "a\0b", "..", "._", "x" * 300, "x" * 301, "a_b/"]
        assert len({FileNames().of(label) for label in labels}) == len(labels)

    def test_what_differs_by_case_alone(self, tmp_path: Path) -> None:
        def records() -> Iterator[Record]:
            return (Record(name, "M", header=name) for name in ("Abc", "x", "aBC"))

        check_labels(records, FileNames(tells_case=True), tmp_path / "list")
        with pytest.raises(runtime.InputError, match="'Abc' and 'aBC' would be one file"):
            check_labels(records, FileNames(tells_case=False), tmp_path / "list")

    def test_equal_digests_are_no_equal_labels(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runtime.extract.labels.hash", lambda text: 7, raising=False)
        names = ["a", "b"]
        check_labels(
            lambda: (Record(name, "M", header=name) for name in names), FileNames(), tmp_path / "l"
        )
        names.append("a")
        with pytest.raises(runtime.InputError, match="1 labels occur more than once: 'a'"):
            check_labels(
                lambda: (Record(name, "M", header=name) for name in names), FileNames(),
                tmp_path / "l",
            )  # fmt: skip

    def test_those_that_are_changed_are_told_and_listed(
        self, artifact: Path, tmp_path: Path
    ) -> None:
        labels = ["Q9/1-10", "fine", "..", "../x", "h" * 300]
        fasta = fasta_of(tmp_path / "x.fasta", dict.fromkeys(labels, "MKV"))
        out = tmp_path / "out"
        result = run(artifact, fasta, out, "--include", "mean")
        assert result.exit_code == 0, result.output
        assert "4 labels cannot name a file: 'Q9/1-10' is in 'Q9_1-10-" in result.stderr
        assert f"; .... All are in {out / 'x.fasta.labels.tsv'}" in result.stderr
        with (out / "x.fasta.labels.tsv").open(newline="") as file:
            listed = {
                row["label"]: row["file"] for row in csv.DictReader(file, dialect="excel-tab")
            }
        assert sorted(listed) == sorted(set(labels) - {"fine"})
        for label, name in (listed | {"fine": "fine.pt"}).items():
            assert torch.load(out / name)["label"] == label
        assert len(list(out.iterdir())) == 6
        assert {path.name for path in tmp_path.iterdir()} == {"x.fasta", "out"}
        # Of a run that changes none, an older list is gone.
        fasta_of(fasta, {"fine": "MKV"})
        assert run(artifact, fasta, out, "--include", "mean").exit_code == 0
        assert not (out / "x.fasta.labels.tsv").exists()


class TestBeforeTheRun:
    """Nothing is loaded, nothing is written."""

    @pytest.fixture(autouse=True)
    def _nothing_is_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(*_: object, **__: object) -> None:
            raise AssertionError("an engine was loaded")

        monkeypatch.setattr(extract_run, "load", load)

    def refused(self, *arguments: object) -> str:
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr

    def test_labels_that_occur_twice(self, artifact: Path, tmp_path: Path) -> None:
        labels = ["a 1", "b", "a 1", "c/d", "c/d", "a 2", "e", "e", "f", "f"]
        (tmp_path / "x.fasta").write_text("".join(f">{label}\nMKV\n" for label in labels))
        message = self.refused(artifact, tmp_path / "x.fasta", tmp_path / "out", "--include", "bos")
        assert "4 labels occur more than once: 'a 1', 'c/d', 'e' and 1 more" in message
        assert list((tmp_path / "out").iterdir()) == []

    def test_in_a_pipe_too(self, artifact: Path, tmp_path: Path) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        feeding = threading.Thread(target=fifo.write_text, args=[">a\nMKV\n>a\nMK\n"])
        feeding.start()
        message = self.refused(artifact, fifo, tmp_path / "out", "--include", "bos")
        feeding.join()
        assert "1 labels occur more than once: 'a'" in message
        assert list((tmp_path / "out").iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--include", "mean", "contacts"], "gives no contacts: build it with"),
            (["--include", "mean", "--repr_layers", "3"], "--repr_layers 3: "),
            (["--include", "mean", "--repr_layers", "0", "-4"], "and -1 to -3 from the last"),
        ],
    )
    def test_what_no_artifact_of_this_model_has(
        self, artifact: Path, fasta: Path, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        assert message in self.refused(artifact, fasta, tmp_path / "out", *arguments)
        assert not (tmp_path / "out").exists()

    def test_a_layer_that_this_artifact_does_not_export(
        self, ready_artifact: Path, fasta: Path, tmp_path: Path
    ) -> None:
        manifest = runtime.manifest.read(ready_artifact)
        layers = range(manifest.architecture.num_layers + 1)
        missing = next(layer for layer in layers if layer not in manifest.layers)
        every = ",".join(map(str, sorted({missing, *manifest.layers})))
        message = self.refused(
            ready_artifact, fasta, tmp_path / "out", "--include", "mean", "--repr_layers", missing
        )
        assert f"does not export layer {missing}, it exports layer" in message
        assert message.rstrip().endswith(f"--layers {every}'")

    @pytest.mark.parametrize(
        ("model", "command"),
        [
            ("esm2_t33_650M_UR50D", "esm2-export build --model esm2_t33_650M_UR50D"),
            ("weights/mine.pt", "esm2-export build --checkpoint weights/mine.pt"),
        ],
    )
    def test_what_the_script_takes_in_place_of_an_artifact(
        self, fasta: Path, tmp_path: Path, model: str, command: str
    ) -> None:
        message = self.refused(model, fasta, tmp_path / "out", "--include", "mean")
        assert command in message

    def test_a_bad_record(self, artifact: Path, tmp_path: Path) -> None:
        fasta = fasta_of(tmp_path / "x.fasta", {"a": "MKV", "b": "MJ"})
        assert "character 'J'" in self.refused(artifact, fasta, tmp_path / "o", "--include", "bos")

    def test_a_folder_that_cannot_be_made(
        self, artifact: Path, fasta: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        message = self.refused(artifact, fasta, tmp_path / "file" / "x", "--include", "mean")
        assert f"cannot write {tmp_path / 'file' / 'x'}: Not a directory" in message


def test_a_rejected_record_shifts_no_label(artifact: Path, tmp_path: Path) -> None:
    sequences = {"a": "MKV", "bad": "MJ", "b": "GGAVL", "bad too": "*", "c": "MW"}
    fasta = fasta_of(tmp_path / "x.fasta", sequences)
    arguments = ["--include", "per_tok", "--on-error", "skip"]
    result = run(artifact, fasta, tmp_path / "out", *arguments)
    assert result.exit_code == 3, result.output
    rejected = tmp_path / "out" / "x.fasta.rejected.tsv"
    assert f"records rejected, listed in {rejected}: 2" in result.stdout
    assert rejected.read_text().count("\n") == 3
    rejected.unlink()
    files = saved(tmp_path / "out")
    assert sorted(files) == ["a.pt", "b.pt", "c.pt"]
    for name, each in files.items():
        assert f"{each['label']}.pt" == name
        assert len(each["representations"][2]) == len(sequences[each["label"]])


def test_files_are_replaced_and_others_stay(artifact: Path, fasta: Path, tmp_path: Path) -> None:
    for name in ("short.pt", "other.pt"):
        (tmp_path / name).write_text("old")
    result = run(artifact, fasta, tmp_path, "--include", "mean")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "other.pt").read_text() == "old"
    assert torch.load(tmp_path / "short.pt")["label"] == "short"
    assert len(list(tmp_path.iterdir())) == 11


def test_a_full_disk_leaves_whole_files(
    artifact: Path, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = torch.save, []

    def full_at_the_third(value: Any, file: Any) -> None:
        calls.append(value)
        if len(calls) == 3:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "full")
        write(value, file)

    monkeypatch.setattr(torch, "save", full_at_the_third)
    result = run(artifact, fasta, tmp_path / "out", "--include", "mean")
    assert result.exit_code == 2
    assert (
        f"error: cannot write {tmp_path / 'out'}: No space left on device. 2 files were written "
        "before, and stay" in result.stderr
    )
    assert sorted(saved(tmp_path / "out")) == sorted(f"{each['label']}.pt" for each in calls[:2])


def test_torch_is_needed_to_write_alone(
    artifact: Path, fasta: Path, tmp_path: Path, fresh_python: Callable[..., Any]
) -> None:
    code = (
        "import sys; from runtime.extract import run; from runtime.cli import main\n"
        "main(['extract', *sys.argv[1:], '--include', 'mean'])"
    )
    result = fresh_python(code, artifact, fasta, tmp_path / "out", blocked=("torch",))
    assert result.returncode == 2
    assert result.stderr.startswith("error: cannot write .pt files: torch is not installed. pip ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--include", "--repr_layers"])
def test_an_option_without_a_value_is_an_error(tmp_path: Path, option: str) -> None:
    result = CliRunner().invoke(
        main, ["extract", "artifact", "x.fasta", str(tmp_path / "out"), option, ""]
    )
    assert result.exit_code == 2
    assert "it has no value" in result.output


def embed_as_pt(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["embed", *map(str, arguments), "--format", "pt"])


def test_embed_writes_the_same_files(artifact: Path, fasta: Path, tmp_path: Path) -> None:
    length = ("--truncation_seq_length", TRUNCATION)
    given = ("--include", "mean", "per_tok", "bos", "--repr_layers", 0, 2, *length)
    assert run(artifact, fasta, tmp_path / "a", *given).exit_code == 0
    length = ("--max-length", TRUNCATION, "--long", "truncate")
    given = ("--pool", "mean,none,cls", "--layer", "0,2", *length)
    result = embed_as_pt(artifact, fasta, "-o", tmp_path / "b", *given)
    assert result.exit_code == 0, result.output
    expected, found = saved(tmp_path / "a"), saved(tmp_path / "b")
    assert found.keys() == expected.keys()
    for name, file in expected.items():
        assert found[name].keys() == file.keys()
        for key in file.keys() - {"label"}:
            for layer, tensor in file[key].items():
                torch.testing.assert_close(
                    found[name][key][layer], tensor, rtol=0, atol=0, equal_nan=True
                )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume", "--json"], "--format pt goes without --resume, --json. Write Parquet"),
        (["--with", "header", "--cache", "c"], "--format pt goes without --with, --cache"),
        (["--max-length", "9", "--long", "window"], "--format pt goes without --long window"),
        (["--pool", "mean-with-eos"], "fair-esm's files hold mean, none and cls, got --pool mean-"),
        (["one_more.fasta"], "--format pt takes one FASTA file, got 2"),
    ],
)  # fmt: skip
def test_what_means_nothing_for_a_file_a_protein(
    artifact: Path, fasta: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = embed_as_pt(artifact, fasta, "-o", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_long_proteins_are_left_out_where_embed_leaves_them_out(
    artifact: Path, tmp_path: Path
) -> None:
    fasta = fasta_of(tmp_path / "in.fasta", {"short": "MKTA", "long": "MKTAYIAKQRQ"})
    options = ("--max-length", 8, "--long", "skip")
    result = embed_as_pt(artifact, fasta, "-o", tmp_path / "out", *options)
    assert result.exit_code == 3, result.output
    assert [path.name for path in (tmp_path / "out").glob("*.pt")] == ["short.pt"]
