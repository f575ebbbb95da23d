"""An artifact is built again to the same bytes; what is not the same is found and named."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from exporter.cli import main
from exporter.publish import writable_copy
from exporter.rebuild.compare import HOLDS_DIGESTS, compare, differences
from runtime import manifest as manifests
from runtime.files import file_entry
from runtime.manifest_schema import Manifest
from tests.conftest import TINY, save_checkpoint
from tests.runtime.signing import reseal

pytestmark = pytest.mark.slow


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["rebuild-check", *map(str, arguments)])


def change(artifact: Path, name: str, before: str, after: str) -> None:
    path = artifact / name
    text = path.read_bytes()
    assert before.encode() in text
    path.write_bytes(text.replace(before.encode(), after.encode()))
    reseal(artifact)


@contextmanager
def edited(artifact: Path) -> Iterator[dict[str, Any]]:
    """The fields of a manifest, which is sealed again."""
    fields = json.loads((artifact / "manifest.json").read_text())
    yield fields
    manifests.write(msgspec.convert(fields, Manifest), artifact)


def test_a_rebuild_finds_the_one_file_that_was_changed(
    compiled_artifact: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """All else is the same bytes: compiled code, weights, the report, the provenance."""
    copy = writable_copy(compiled_artifact, tmp_path / "compiled")
    change(copy, "parity.html", "<html", "<HTML")
    result = run(copy, "--checkpoint", tiny_checkpoint, "--use-cache")
    assert result.exit_code == 1, result.output
    *lines, verdict = result.stdout.splitlines()
    said = {line.split()[0]: line.split()[1] for line in lines}
    assert verdict == "DIFFERS: manifest.json, parity.html"
    assert [name for name, word in said.items() if word != "same"] == verdict.split(": ")[1].split(
        ", "
    )
    assert {"model.pt2", "weights.safetensors", "golden.npz", "provenance.json"} <= said.keys()
    assert "not alike" not in result.stderr


class TestCompare:
    @pytest.fixture
    def again(self, tiny_artifact: Path, tmp_path: Path) -> Path:
        return writable_copy(tiny_artifact, tmp_path / "artifact")

    @staticmethod
    def outcomes(one: Path, other: Path) -> dict[str, tuple[bool, str]]:
        return {each.name: (each.same, each.reason) for each in compare(one, other)}

    @pytest.mark.parametrize("what", ["cpu", "threads", "gpu"])
    def test_what_is_measured_may_differ_on_another_processor(
        self, tiny_artifact: Path, again: Path, what: str
    ) -> None:
        here = json.loads((again / "parity.json").read_text())["environment"][what]
        change(again, "parity.json", f'"{what}": "{here}"', f'"{what}": "another"')
        found = self.outcomes(tiny_artifact, again)
        assert found["parity.json"] == (False, "measured on another processor, or by other threads")
        assert found["manifest.json"] == (False, HOLDS_DIGESTS)
        assert found["golden.npz"] == (True, "")
        assert any(line.startswith("processor: ") for line in differences(tiny_artifact, again))

    def test_and_not_on_this_one(self, tiny_artifact: Path, again: Path) -> None:
        change(again, "parity.json", '"seed": 0', '"seed": 1')
        found = self.outcomes(tiny_artifact, again)
        assert found["parity.json"] == found["manifest.json"] == (False, "")

    def test_another_python_is_said_and_not_declared(
        self, tiny_artifact: Path, again: Path
    ) -> None:
        change(again, "provenance.json", '"python": "', '"python": "9')
        found = self.outcomes(tiny_artifact, again)
        assert found["provenance.json"] == found["manifest.json"] == (False, "")
        assert [line.partition(":")[0] for line in differences(tiny_artifact, again)] == ["python"]

    def test_plans_may_differ_and_what_is_measured_of_them(
        self, tiny_artifact: Path, again: Path, tmp_path: Path
    ) -> None:
        one = writable_copy(tiny_artifact, tmp_path / "one")
        for folder in (one, again):
            plan = folder / "tensorrt" / "8.9.plan"
            plan.parent.mkdir()
            plan.write_text(folder.name)
            with edited(folder) as manifest:
                manifest["files"]["tensorrt/8.9.plan"] = msgspec.to_builtins(file_entry(plan))
        change(again, "parity.json", '"seed": 0', '"seed": 1')
        found = self.outcomes(one, again)
        assert "TensorRT" in found["tensorrt/8.9.plan"][1]
        assert found["parity.json"] == (False, "measured of engines that differ")
        assert found["manifest.json"] == (False, HOLDS_DIGESTS)

    def test_a_file_more_or_less_is_found(self, tiny_artifact: Path, again: Path) -> None:
        with edited(again) as manifest:
            del manifest["files"]["parity.html"]
        assert self.outcomes(tiny_artifact, again)["parity.html"] == (False, "")
        assert self.outcomes(again, tiny_artifact)["parity.html"] == (False, "")


class TestRefused:
    """In one line, with status 2, before anything is built."""

    @pytest.fixture(autouse=True)
    def _nothing_is_built(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def build(*arguments: object) -> None:
            raise AssertionError("built")

        monkeypatch.setattr("exporter.rebuild.run.build", build)

    def refused(self, *arguments: object) -> str:
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert len(result.stderr.splitlines()) == 1
        return result.stderr

    def test_without_a_provenance(self, ready_artifact: Path) -> None:
        assert "holds no provenance.json" in self.refused(ready_artifact)

    def test_without_its_checkpoint(self, tiny_artifact: Path) -> None:
        assert "was built from tiny.pt: give it with --checkpoint" in self.refused(tiny_artifact)

    def test_with_another_checkpoint(self, tiny_artifact: Path, tmp_path: Path) -> None:
        other = save_checkpoint(tmp_path / "tiny.pt", TINY, 9)
        said = self.refused(tiny_artifact, "--checkpoint", other)
        assert "is not the tiny that" in said and "sha256" in said

    def test_with_what_it_was_not_built_from(
        self, tiny_artifact: Path, tiny_checkpoint: Path
    ) -> None:
        said = self.refused(tiny_artifact, "--checkpoint", tiny_checkpoint, "--probe", "a.npz")
        assert "was not built with --probe" in said

    def test_damaged(self, tiny_artifact: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
        copy = writable_copy(tiny_artifact, tmp_path / "copy")
        (copy / "provenance.json").write_text("{}")
        assert "provenance.json has 2 bytes" in self.refused(copy)
        reseal(copy)
        assert "cannot be read" in self.refused(copy, "--checkpoint", tiny_checkpoint)

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ('"kind": "checkpoint"', '"kind": "artifact"'),
            ('"pool": "mean"', '"pool": "all"'),
            ("urn:esm2-engines:build:1", "urn:esm2-engines:build:2"),
            ('"startedOn": "2', '"startedOn": "x'),
        ],
    )
    def test_what_no_build_wrote(
        self, tiny_artifact: Path, tiny_checkpoint: Path, tmp_path: Path, before: str, after: str
    ) -> None:
        copy = writable_copy(tiny_artifact, tmp_path / "copy")
        change(copy, "provenance.json", before, after)
        assert "provenance.json" in self.refused(copy, "--checkpoint", tiny_checkpoint)

    def test_a_name_that_leads_out_of_the_folder(
        self, tiny_artifact: Path, tiny_checkpoint: Path, tmp_path: Path
    ) -> None:
        copy = writable_copy(tiny_artifact, tmp_path / "copy")
        with edited(copy) as manifest:
            manifest["name"] = "../../elsewhere"
        assert "is refused" in self.refused(copy, "--checkpoint", tiny_checkpoint)
