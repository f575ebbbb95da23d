"""What a head's numbers mean, and the command that writes them."""

import csv
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import esm2_engines as esm2
from exporter.parity.truth.cache import Cache
from runtime.cli import main
from runtime.manifest_schema import HeadEntry
from runtime.predict.scores import Prediction, scores_of
from runtime.predict.table import check_table
from tests.conftest import LABELS, MadeOnce, probing

FASTA = ">a first\nMKTAYIAKQR\n>b\nGGAVL\n>a\nGGAVLKKK\n"
SINGLE = "single_label_classification"


@pytest.fixture(scope="module")
def of_residues(tiny_checkpoint: Path, made_once: MadeOnce, cache: Cache) -> Path:
    return made_once("probe-residues", probing(tiny_checkpoint, "residues", cache))


@pytest.fixture(scope="module")
def of_proteins(task_artifact: Path) -> Path:
    return task_artifact


def predict(artifact: Path, folder: Path, name: str, *options: str, fasta: str = FASTA) -> Result:
    path = folder / "x.fasta"
    path.write_text(fasta)
    command = ["predict", str(artifact), str(path), "-o", str(folder / name), *options]
    return CliRunner().invoke(main, command)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestScores:
    def test_one_label_is_a_softmax(self) -> None:
        found = scores_of(np.array([[1000.0, 1000, -np.inf]], np.float32), SINGLE)
        np.testing.assert_array_equal(found, [[0.5, 0.5, 0]])
        assert found.dtype == np.float64

    def test_labels_alone_are_logistic(self) -> None:
        found = scores_of(np.array([[-2000.0, 0, 1]]), "multi_label_classification")
        np.testing.assert_allclose(found, [[0, 0.5, 1 / (1 + np.exp(-1.0))]])

    def test_values_stay(self) -> None:
        np.testing.assert_array_equal(scores_of(np.array([[-3.5]]), "regression"), [[-3.5]])

    def test_labels(self) -> None:
        scores = np.array([[0.2, 0.7, 0.1], [0.5, 0.1, 0.6]])
        assert Prediction("x", LABELS, scores[0], SINGLE).label == "membrane"
        assert Prediction("x", LABELS, scores[0], SINGLE).probability == 0.7
        assert Prediction("x", LABELS, scores, SINGLE).label == ["membrane", "other"]
        several = "multi_label_classification"
        assert Prediction("x", LABELS, scores[1], several).label == ["soluble", "other"]
        assert Prediction("x", LABELS, scores, "regression").label is None
        assert Prediction("x", LABELS, scores[0] * np.nan, SINGLE).label == ""


class TestCommand:
    def test_labels_of_proteins_in_input_order(self, of_proteins: Path, tmp_path: Path) -> None:
        done = predict(of_proteins, tmp_path, "out.csv")
        assert done.exit_code == 0, done.output
        found = rows(tmp_path / "out.csv")
        assert [row["id"] for row in found] == ["a", "b", "a"]
        with esm2.load(of_proteins) as model:
            expected = model.predict(["MKTAYIAKQR", "GGAVL", "GGAVLKKK"])
        for row, one in zip(found, expected, strict=True):
            assert row["label"] == one.label
            assert float(row["probability"]) == pytest.approx(one.probability, rel=1e-5)

    def test_labels_of_residues(self, of_residues: Path, tmp_path: Path) -> None:
        options = ("--max-length", "8", "--long", "truncate")
        assert predict(of_residues, tmp_path, "out.csv", *options).exit_code == 0
        found = rows(tmp_path / "out.csv")
        assert "".join(row["residue"] for row in found) == "MKTAYIAKGGAVLGGAVLKKK"
        assert [row["position"] for row in found[:9]] == [*"12345678", "1"]
        with esm2.load(of_residues) as model:
            one = model.predict("MKTAYIAK")
        assert [row["label"] for row in found[:8]] == one.label

    def test_parquet(self, of_proteins: Path, tmp_path: Path) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        assert predict(of_proteins, tmp_path, "out.parquet").exit_code == 0
        assert predict(of_proteins, tmp_path, "out.csv").exit_code == 0
        table = parquet.read_table(tmp_path / "out.parquet")
        assert table["label"].to_pylist() == [row["label"] for row in rows(tmp_path / "out.csv")]
        assert table.schema.metadata[b"head"] == b"linear_probe"

    def test_of_the_mean_of_no_residues_there_is_none(
        self, of_proteins: Path, tmp_path: Path
    ) -> None:
        done = predict(of_proteins, tmp_path, "out.csv", fasta=">empty\n\n>b\nGGAVL\n")
        assert done.exit_code == 0, done.output
        empty, other = rows(tmp_path / "out.csv")
        assert (empty["label"], empty["probability"]) == ("", "nan")
        assert other["label"] in LABELS

    def test_rejected_records(self, of_proteins: Path, tmp_path: Path) -> None:
        fasta = FASTA + ">bad\nGGJ\n"
        done = predict(of_proteins, tmp_path, "out.csv", fasta=fasta)
        assert done.exit_code == 2
        assert not (tmp_path / "out.csv").exists()
        done = predict(of_proteins, tmp_path, "out.csv", "--on-error", "skip", fasta=fasta)
        assert done.exit_code == 3
        assert len(rows(tmp_path / "out.csv")) == 3
        assert "bad" in (tmp_path / "out.csv.rejected.tsv").read_text()

    def test_info_lists_it(self, of_proteins: Path) -> None:
        said = CliRunner().invoke(main, ["info", str(of_proteins)]).output
        assert "head          linear_probe" in said
        assert ", ".join(LABELS) in said


class TestRefused:
    def one_line(self, done: Result) -> str:
        assert done.exit_code == 2
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert "Traceback" not in done.stderr
        return errors[0]

    def test_an_artifact_without_a_head(self, tiny_artifact: Path, tmp_path: Path) -> None:
        message = self.one_line(predict(tiny_artifact, tmp_path, "out.csv"))
        assert "has no head" in message
        assert "--probe FILE" in message
        with (
            esm2.load(tiny_artifact) as model,
            pytest.raises(esm2.UnsupportedError, match="no head"),
        ):
            model.predict("MKT")

    @pytest.mark.parametrize(
        ("name", "options", "said"),
        [
            ("out.npz", (), "ends in .csv or .parquet"),
            ("nowhere/out.csv", (), "does not exist"),
            ("out.csv", ("--max-length", "4", "--long", "window"), "windows cannot be joined"),
        ],
    )
    def test_options(
        self, of_proteins: Path, tmp_path: Path, name: str, options: tuple[str, ...], said: str
    ) -> None:
        assert said in self.one_line(predict(of_proteins, tmp_path, name, *options))

    def test_a_label_named_as_a_column(self, tmp_path: Path) -> None:
        head = HeadEntry(
            kind="linear_probe", rows="proteins", problem_type="regression", id2label={"0": "id"}
        )
        with pytest.raises(esm2.InputError, match="named as a column"):
            check_table(tmp_path / "out.csv", head)
