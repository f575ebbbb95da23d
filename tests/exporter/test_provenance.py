"""What an artifact says of its build: true, valid by others' libraries, and covered by digests."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from packaging.requirements import Requirement

from exporter.build_options import BuildOptions
from exporter.errors import ExportError
from exporter.formats.tensorrt.options import PlanOptions
from exporter.model.reference import WeightsSource
from exporter.model.sources.probe import ProbeSource
from exporter.parity.verify import ProofOptions
from exporter.provenance import materials
from exporter.provenance.record import options_of, record_of
from exporter.provenance.sbom import OF_SOURCE, OF_TARGET, ROOTS, installed, record_sha256
from exporter.provenance.statement import EPOCH_VARIABLE, now
from exporter.publish import writable_copy
from exporter.signing import Signer
from exporter.weights.calibration import Calibration
from runtime.cli import main as run_main
from tests.runtime.signing import new_pair, reseal

if sys.version_info >= (3, 11):
    import tomllib


def info(artifact: Path) -> str:
    result = CliRunner().invoke(run_main, ["info", str(artifact)])
    assert result.exit_code == 0, result.output
    return result.stdout


def fields(artifact: Path) -> dict:
    return json.loads((artifact / "provenance.json").read_text())


@pytest.mark.slow
class TestOfAnArtifact:
    def test_is_a_statement_by_in_totos_own_library(self, tiny_artifact: Path) -> None:
        text = (tiny_artifact / "provenance.json").read_text()
        parsed = json_format.Parse(text, statement_pb2.Statement())  # refuses unknown fields
        Statement.copy_from_pb(parsed).validate()
        assert parsed.predicate_type == "https://slsa.dev/provenance/v1"
        predicate = provenance_pb2.Provenance()
        json_format.ParseDict(fields(tiny_artifact)["predicate"], predicate)
        assert predicate.build_definition.build_type and predicate.run_details.builder.id

    def test_subjects_are_the_other_files(self, tiny_artifact: Path) -> None:
        subjects = {each["name"]: each["digest"] for each in fields(tiny_artifact)["subject"]}
        found = {
            path.relative_to(tiny_artifact).as_posix(): {
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest()
            }
            for path in tiny_artifact.rglob("*")
            if path.is_file() and path.name not in ("manifest.json", "provenance.json")
        }
        assert subjects == found and "sbom.cdx.json" in found

    def test_names_what_it_was_built_from(self, tiny_artifact: Path, tiny_checkpoint: Path) -> None:
        definition = fields(tiny_artifact)["predicate"]["buildDefinition"]
        source, exporter = definition["resolvedDependencies"]
        assert source["name"] == "tiny"
        assert source["digest"] == {
            "sha256": hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest(),
            "stateSha256": json.loads((tiny_artifact / "manifest.json").read_text())["weights"][
                "state_sha256"
            ],
        }
        assert exporter["name"] == "esm2-engines"
        assert str(tiny_checkpoint.parent) not in (tiny_artifact / "provenance.json").read_text()

    def test_sbom_is_valid_cyclonedx(self, tiny_artifact: Path) -> None:
        text = (tiny_artifact / "sbom.cdx.json").read_text()
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        components = {each["name"]: each for each in json.loads(text)["components"]}
        assert {"torch", "numpy", "fair-esm", "onnxscript"} <= components.keys()
        assert all(len(each["hashes"]) == 1 for each in components.values())

    def test_info_shows_it(self, tiny_artifact: Path, tiny_checkpoint: Path) -> None:
        digest = hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
        number = len(json.loads((tiny_artifact / "sbom.cdx.json").read_text())["components"])
        said = info(tiny_artifact)
        assert f"from tiny, SHA-256 {digest[:12]}; {number} packages in sbom.cdx.json" in said
        assert "by esm2-engines" in said

    def test_a_changed_one_is_refused(self, tiny_artifact: Path, tmp_path: Path) -> None:
        copy = writable_copy(tiny_artifact, tmp_path / "copy")
        path = copy / "provenance.json"
        path.write_text(path.read_text().replace('"dtype": "float32"', '"dtype": "float64"'))
        result = CliRunner().invoke(run_main, ["info", str(copy)])
        assert result.exit_code == 2 and "provenance.json was changed" in result.stderr

    def test_a_signature_covers_it(
        self, tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy = writable_copy(tiny_artifact, tmp_path / "copy")
        pair = new_pair(tmp_path, "signer")
        Signer(pair.private).sign(copy)
        path = copy / "provenance.json"
        path.write_text(path.read_text().replace('"dtype": "float32"', '"dtype": "float64"'))
        reseal(copy)
        assert "provenance" in info(copy)  # digests alone do not notice it
        monkeypatch.setenv("ESM2_TRUSTED_KEY", str(pair.public))
        assert CliRunner().invoke(run_main, ["info", str(copy)]).exit_code == 2

    @pytest.mark.parametrize("text", ["", "{}", "[" * 5000, "\x00"])
    def test_one_that_is_none_is_no_traceback(
        self, tiny_artifact: Path, tmp_path: Path, text: str
    ) -> None:
        copy = writable_copy(tiny_artifact, tmp_path / "copy")
        (copy / "provenance.json").write_text(text)
        reseal(copy)
        assert "provenance    cannot be read" in info(copy)


def test_an_artifact_without_one_says_so(ready_artifact: Path) -> None:
    assert "provenance    none" in info(ready_artifact)


def test_one_that_the_manifest_does_not_list_is_not_believed(ready_artifact: Path) -> None:
    (ready_artifact / "provenance.json").write_text("{}")
    assert "provenance    none" in info(ready_artifact)


class TestPackages:
    @pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")
    def test_roots_are_those_of_the_project(self) -> None:
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
        extras = project["project"]["optional-dependencies"]
        asked = [*project["project"]["dependencies"], *extras["export"], *extras["flash"]]
        asked += ["onnxruntime-gpu", "flash-attn-3"]
        own = [each for each in map(Requirement, asked) if each.name == "esm2-engines"]
        asked += [each for mine in own for extra in mine.extras for each in extras[extra]]
        assert {*ROOTS, "esm2-engines"} == {Requirement(each).name for each in asked}
        plans = {Requirement(each).name for each in extras["tensorrt"] + extras["tensorrt-rtx"]}
        assert set(OF_TARGET["tensorrt"]) == plans
        assert set(OF_SOURCE["huggingface"]) == {"peft", "transformers"}

    def test_what_packages_require_is_listed(self) -> None:
        found = installed(["onnxscript"])
        assert {"onnxscript", "onnx", "numpy"} <= found.keys()
        assert found["onnx"].requires >= {"numpy", "protobuf"}
        assert list(found) == sorted(found)

    def test_what_is_not_installed_is_left_out(self) -> None:
        assert installed(["no-such-package"]) == {}

    def test_digest_is_of_the_wheel_alone(self) -> None:
        """Not of scripts, whose first line names a Python, nor of how it was installed."""
        wheel = "a/__init__.py,sha256=xyz,10\na/b.py,sha256=uvw,20\na-1.dist-info/RECORD,,\n"
        here = "../../../bin/a,sha256=123,5\na-1.dist-info/INSTALLER,sha256=456,4\n"
        compiled = "a/__pycache__/b.pyc,,\n"
        assert record_sha256(wheel) == record_sha256(here + wheel + compiled)
        assert record_sha256(wheel) != record_sha256(wheel.replace("uvw", "uvv"))


class TestCommit:
    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        for name in ("exporter", "runtime"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "build.py").touch()
        self.git(tmp_path, "init", "-q")
        self.git(tmp_path, "add", ".")
        self.git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "one")
        return tmp_path

    @staticmethod
    def git(folder: Path, *arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True
        ).stdout.strip()

    def test_is_said(self, checkout: Path) -> None:
        commit = self.git(checkout, "rev-parse", "HEAD")
        assert materials.commit_of(checkout / "exporter") == (commit, False)

    @pytest.mark.parametrize("name", ["exporter/build.py", "runtime/new.py"])
    def test_changes_are_said(self, checkout: Path, name: str) -> None:
        (checkout / name).write_text("1")
        commit = self.git(checkout, "rev-parse", "HEAD")
        assert materials.commit_of(checkout / "exporter") == (commit, True)

    def test_that_of_another_repository_is_not_taken(self, checkout: Path) -> None:
        """A virtual environment may lie in a checkout of something else."""
        inside = checkout / "venv" / "exporter"
        inside.mkdir(parents=True)
        (inside / "build.py").touch()
        assert materials.commit_of(inside) is None

    def test_without_git_there_is_none(
        self, checkout: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "")
        assert materials.commit_of(checkout / "exporter") is None


class TestTime:
    def test_source_date_epoch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(EPOCH_VARIABLE, "1700000000")
        assert now() == "2023-11-14T22:13:20Z"

    @pytest.mark.parametrize("text", ["", "today", "9" * 30])
    def test_one_that_is_none_is_refused(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        monkeypatch.setenv(EPOCH_VARIABLE, text)
        with pytest.raises(ExportError, match="expected seconds since 1970"):
            now()


def test_the_recorded_options_are_the_options(tmp_path: Path) -> None:
    checkpoint, probe = tmp_path / "model.pt", tmp_path / "probe.npz"
    checkpoint.touch()
    source = WeightsSource(
        "checkpoint", str(checkpoint), 3, True, False, ProbeSource(str(probe), "cls")
    )
    calibration = Calibration("mine.fasta", ("MKT",))
    int8 = {"calibration": calibration, "budget": 0.02, "bits": 7}
    plans = PlanOptions(("8.9",), 4096, 512)
    options = BuildOptions(
        source, ["onnx-int8", "tensorrt"], [0, 2], "mean", "float16",
        ProofOptions(engines=["onnx-int8"]), tmp_path / "out", "cpu",
        {"onnx-int8": int8, "tensorrt": {"options": plans}}, 3000, True,
    )  # fmt: skip
    record = record_of(options)
    assert record.source == "model.pt"
    again = options_of(record, tmp_path / "out", str(checkpoint), str(probe), calibration)
    assert again == options
    bare = replace(options, prove=None, of_format={}, layers=None, targets=["onnx"])
    assert options_of(record_of(bare), tmp_path / "out", str(checkpoint), str(probe), None) == bare
