import copy
import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import runtime
from exporter import build as building
from exporter.build_options import BuildOptions
from exporter.cli import main
from exporter.errors import ExportError
from exporter.model.packed_forward import PackedESM2
from exporter.model.reference import Reference
from exporter.parity.truth.packs import STREAM, parity_packs
from exporter.publish import staged, writable_copy
from runtime.trust.whom import VARIABLE
from tests.conftest import ARCHITECTURE, LAYERS, TINY, few_packs, save_checkpoint
from tests.runtime.signing import new_pair

pytestmark = pytest.mark.slow


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class TestArtifact:
    def test_holds_what_the_manifest_lists(self, artifact: Path) -> None:
        manifest = json.loads((artifact / "manifest.json").read_text())
        assert set(manifest["files"]) | {"manifest.json"} == {
            path.relative_to(artifact).as_posix() for path in artifact.rglob("*") if path.is_file()
        }
        assert manifest["weights"]["kind"] == "synthetic"
        assert manifest["layers"] == list(LAYERS)
        assert [output["name"] for output in manifest["signature"]["outputs"]] == [
            "logits", "representations.0", "representations.3", "representations.6", "pooled",
        ]  # fmt: skip

    def test_carries_its_measured_parity(self, artifact: Path) -> None:
        manifest = json.loads((artifact / "manifest.json").read_text())
        report = json.loads((artifact / "parity.json").read_text())
        assert set(manifest["parity"]) == {"torchscript", "onnx"}
        for engine in report["engines"]:
            worst = max(row["engine"]["relative_l2"] for row in engine["rows"])
            assert worst == manifest["parity"][engine["engine"]]["worst_relative_l2"] < 2e-6
            assert manifest["parity"][engine["engine"]]["packs"] == len(few_packs())

    def test_every_file_is_readable_by_others(self, artifact: Path) -> None:
        modes = {path.name: path.stat().st_mode & 0o444 for path in artifact.iterdir()}
        assert set(modes.values()) == {artifact.stat().st_mode & 0o444}


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ([], "give one of --model, --checkpoint, --synthetic; got 0"),
            (["--model", "a", "--synthetic", "b"], "got 2"),
            (["--synthetic", "esm2_650M"], "unknown model 'esm2_650M'"),
            (["--synthetic", ARCHITECTURE, "--layers", "7"], "layers 0..6"),
            (["--synthetic", ARCHITECTURE, "--layers", "six"], "numbers separated by commas"),
            (["--synthetic", ARCHITECTURE, "--target", "coreml"], "got ['coreml']"),
            (["--checkpoint", "/nowhere.pt"], "no such file"),
        ],
    )
    def test_a_wrong_one_is_one_line(
        self, options: list[str], message: str, tmp_path: Path
    ) -> None:
        result = run("build", *options, "--out", tmp_path / "x")
        assert result.exit_code == 2
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert message in errors[0]
        assert "Traceback" not in result.output
        assert not (tmp_path / "x").exists()


class TestPublishing:
    def make(self, folder: Path, content: str) -> None:
        with staged(folder) as aside:
            (aside / "manifest.json").write_text(content)

    def test_replaces_as_a_whole(self, tmp_path: Path) -> None:
        target = tmp_path / "a"
        self.make(target, "one")
        (target / "extra").touch()
        self.make(target, "two")
        assert [path.name for path in target.iterdir()] == ["manifest.json"]
        assert (target / "manifest.json").read_text() == "two"
        assert list(tmp_path.iterdir()) == [target]

    def test_without_atomic_exchange(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("exporter.publish._exchange", lambda one, other: False)
        self.test_replaces_as_a_whole(tmp_path)

    def test_a_failure_leaves_the_old_one(self, tmp_path: Path) -> None:
        target = tmp_path / "a"
        self.make(target, "one")
        with pytest.raises(RuntimeError), staged(target) as aside:
            (aside / "manifest.json").write_text("half")
            raise RuntimeError
        assert (target / "manifest.json").read_text() == "one"
        assert list(tmp_path.iterdir()) == [target]

    def test_through_a_symbolic_link(self, tmp_path: Path) -> None:
        self.make(tmp_path / "a", "one")
        (tmp_path / "link").symlink_to("a")
        self.make(tmp_path / "link", "two")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "a" / "manifest.json").read_text() == "two"

    def test_does_not_overwrite_other_peoples_folders(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "thesis.tex").touch()
        with pytest.raises(ExportError, match="is not an artifact"), staged(tmp_path / "a"):
            pass
        assert (tmp_path / "a" / "thesis.tex").exists()


def digests(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).digest() for path in files}


@pytest.mark.parametrize("step", ["loading", "exporting torchscript", "exporting onnx", "verify"])
def test_killing_a_build_leaves_the_old_artifact(
    tiny_artifact: Path, tiny_checkpoint: Path, tmp_path: Path, step: str
) -> None:
    target = tmp_path / "tiny"
    writable_copy(tiny_artifact, target)
    before = digests(target)
    command = [
        sys.executable, "-m", "exporter.cli", "build", "--checkpoint", str(tiny_checkpoint),
        "--out", str(target),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any(line.startswith(step) for line in process.stderr)
    time.sleep(0.3)  # in the middle of it
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert digests(target) == before
    with runtime.load(target) as engine:
        assert engine.run(runtime.PackedBatch.from_sequences(["MKT"])).logits.shape == (5, 33)


def test_an_engine_that_fails_is_not_published(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real build with a real fault: one bias of each layer is off in what is exported."""

    def make_faulty(reference: Reference, options: BuildOptions) -> PackedESM2:
        sound = Reference(
            copy.deepcopy(reference.model), reference.alphabet, reference.architecture,
            reference.origin,
        )  # fmt: skip
        packed = make_sound(sound, options)
        for layer in packed.layers:
            layer.fc1.bias.data[0] += 1e-3
        return packed

    make_sound = building._packed
    monkeypatch.setattr(building, "_packed", make_faulty)
    result = run("build", "--checkpoint", tiny_checkpoint, "--target", "torchscript",
                 "--out", tmp_path / "x")  # fmt: skip
    assert result.exit_code == 1
    assert "differs from eager fair-esm" in result.stderr
    assert list(tmp_path.iterdir()) == []


class TestVerify:
    def test_passes(self, artifact: Path) -> None:
        result = run("verify", artifact, "--engine", "torchscript", "--seed", "5")
        assert result.exit_code == 0, result.output
        assert result.stdout.rstrip().endswith("PASSED")

    @pytest.mark.usefixtures("all_packs")
    def test_json(self, tiny_artifact: Path) -> None:
        result = run("verify", tiny_artifact, "--engine", "onnx", "--json")
        assert result.exit_code == 0
        report = json.loads(result.stdout)
        assert report["packs"].keys() == parity_packs().keys()
        compared = {row["pack"] for row in report["engines"][0]["rows"]}
        by_command = {pack for pack in compared if pack.startswith(f"{STREAM}, by esm2-run embed")}
        assert compared - by_command == parity_packs().keys() - {STREAM}
        assert len(by_command) == 2

    def test_an_engine_that_is_not_there(self, artifact: Path) -> None:
        result = run("verify", artifact, "--engine", "tensorrt")
        assert result.exit_code == 2
        assert "holds no engine 'tensorrt', it holds onnx, torchscript" in result.stderr

    def test_a_folder_that_is_no_artifact(self, tmp_path: Path) -> None:
        result = run("verify", tmp_path)
        assert result.exit_code == 2
        assert "is not an artifact" in result.stderr

    def test_another_checkpoint(self, artifact: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        writable_copy(artifact, other)
        result = run("verify", other, "--checkpoint", "/nowhere.pt")
        assert result.exit_code == 2
        assert "no such file" in result.stderr


class TestFromACheckpoint:
    """Weights that cannot be drawn again: verify takes the artifact's own, by their digest."""

    @pytest.fixture(scope="class")
    @classmethod
    def files(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("checkpoint")
        return tuple(
            save_checkpoint(folder / f"{name}.pt", TINY, seed)
            for name, seed in (("mine", 3), ("other", 4))
        )

    def test_build_and_verify(
        self, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Signed: the gate's own copies, which are not, are run even where a key is trusted."""
        mine, other = files
        out = tmp_path / "mine"
        signer = new_pair(tmp_path, "signer")
        monkeypatch.setenv(VARIABLE, str(signer.public))
        result = run(
            "build", "--checkpoint", mine, "--target", "torchscript", "--out", out,
            "--sign-key", signer.private,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        monkeypatch.setenv(VARIABLE, str(signer.public))
        assert run("verify", out).exit_code == 0
        monkeypatch.setenv(VARIABLE, str(new_pair(tmp_path, "another").public))
        result = run("verify", out)
        assert result.exit_code == 2 and "by another key" in result.stderr
        monkeypatch.delenv(VARIABLE)
        assert "SYNTHETIC" not in result.output
        assert json.loads((out / "manifest.json").read_text())["weights"]["kind"] == "checkpoint"
        assert run("verify", out, "--checkpoint", mine).exit_code == 0
        result = run("verify", out, "--checkpoint", other)
        assert result.exit_code == 2
        assert "is not what" in result.stderr
