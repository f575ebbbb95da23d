import hashlib
import json
from pathlib import Path

import msgspec
import pytest

from runtime import files
from runtime import manifest as manifests
from runtime.errors import ArtifactError
from runtime.loading import load
from runtime.manifest_upgrades import SCHEMA_VERSION, UPGRADES
from tests.conftest import STORED_SCHEMAS, stored_artifact


@pytest.fixture
def copy(ready_artifact: Path) -> Path:
    """Of the newest schema, and ours to change."""
    manifests.write(manifests.read(ready_artifact), ready_artifact)
    return ready_artifact


def test_reads_what_was_written(artifact: Path) -> None:
    manifest = manifests.read(artifact)
    assert manifest.architecture.num_layers == 2
    assert set(manifest.engines) == {"torchscript", "onnx"}


@pytest.mark.parametrize("place", [0.0, 0.31, 0.77, 1.0])
def test_a_flipped_byte_in_any_file_is_refused_by_name(copy: Path, place: float) -> None:
    for name in [*manifests.read(copy).files, manifests.FILE_NAME]:
        path = copy / name
        data = path.read_bytes()
        damaged = bytearray(data)
        damaged[int(place * (len(data) - 1))] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            manifests.read(copy)
        path.write_bytes(data)


class TestBlocks:
    """Files that several threads compare."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "BLOCK_BYTES", 1000)

    def test_every_block_counts(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        data = bytes(i * 7 % 251 for i in range(3001))
        path.write_bytes(data)
        entry = files.file_entry(path)
        assert len(entry.blocks) == 4
        assert entry.sha256 == hashlib.sha256(data).hexdigest()
        assert entry.blocks[3] == hashlib.sha256(data[3000:]).hexdigest()
        assert files.problem_with_files(tmp_path, {"x": entry}) == []
        for place in (0, 999, 1000, 2500, 3000):
            damaged = bytearray(data)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            (problem,) = files.problem_with_files(tmp_path, {"x": entry})
            assert problem.startswith("x was changed"), place

    @pytest.mark.parametrize("count", [0, 1, 1000])
    def test_one_block_needs_no_digest_of_its_own(self, tmp_path: Path, count: int) -> None:
        (tmp_path / "x").write_bytes(b"1" * count)
        assert files.file_entry(tmp_path / "x").blocks == []

    def test_a_block_without_a_digest_is_not_believed(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.write_bytes(b"1" * 3000)
        entry = files.file_entry(path)
        entry = msgspec.structs.replace(entry, blocks=entry.blocks[:2])
        assert files.problem_with_files(tmp_path, {"x": entry}) == ["x has 2 digests, expected 3"]


@pytest.mark.parametrize("schema", STORED_SCHEMAS)
class TestOlderSchemas:
    def test_are_read_and_answer(self, schema: int, tmp_path: Path) -> None:
        folder = stored_artifact(schema, tmp_path)
        assert json.loads((folder / "manifest.json").read_text())["schema_version"] == schema
        for name in ("onnx", "torchscript"):
            with load(folder, name, validate=True) as engine:
                assert engine.spec.layers == (1, 2)

    def test_are_written_as_the_newest(self, schema: int, tmp_path: Path) -> None:
        folder = stored_artifact(schema, tmp_path)
        manifest = manifests.read(folder)
        manifests.write(manifest, folder)
        assert manifests.read(folder).schema_version == SCHEMA_VERSION

    def test_are_sealed(self, schema: int, tmp_path: Path) -> None:
        path = stored_artifact(schema, tmp_path) / "manifest.json"
        path.write_bytes(path.read_bytes().replace(b'"float32"', b'"float16"'))
        with pytest.raises(ArtifactError, match=r"manifest\.json was changed"):
            manifests.read(path.parent)


def test_every_version_from_5_on_has_an_upgrade_and_an_example() -> None:
    older = list(range(5, SCHEMA_VERSION))
    assert sorted(UPGRADES) == older
    assert set(older) <= set(STORED_SCHEMAS)


def test_every_byte_of_the_manifest_is_sealed(copy: Path) -> None:
    path = copy / "manifest.json"
    original = path.read_bytes()
    for i in range(0, len(original), 3):
        data = bytearray(original)
        data[i] ^= 4
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match=r"manifest\.json"):
            manifests.read(copy, check_files=False)


def test_missing_and_cut_files_are_named_together(copy: Path) -> None:
    (copy / "model.ts").unlink()
    (copy / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(ArtifactError) as error:
        manifests.read(copy)
    assert "model.ts is missing" in str(error.value)
    assert "weights.safetensors has 5 bytes" in str(error.value)


@pytest.mark.parametrize(
    ("version", "advice"), [(SCHEMA_VERSION + 1, "Upgrade"), (4, "Export again")]
)
def test_another_schema_version(copy: Path, version: int, advice: str) -> None:
    path = copy / "manifest.json"
    fields = json.loads(path.read_text())
    fields["schema_version"] = version
    path.write_text(json.dumps(fields))
    with pytest.raises(
        ArtifactError, match=f"schema version {version}, this runtime reads 5 to .* {advice}"
    ):
        manifests.read(copy)


def test_a_misspelt_field_is_refused(copy: Path) -> None:
    manifest = manifests.read(copy)
    manifests.write(manifest, copy)
    text = (copy / "manifest.json").read_bytes().replace(b'"num_heads"', b'"heads"')
    unsealed = manifests._SEAL.sub(rb"\g<1>" + b"0" * 64 + rb"\g<3>", text)
    seal = manifests.hashlib.sha256(unsealed).hexdigest().encode()
    (copy / "manifest.json").write_bytes(
        manifests._SEAL.sub(rb"\g<1>" + seal + rb"\g<3>", unsealed)
    )
    with pytest.raises(ArtifactError, match="does not follow the schema: .*architecture"):
        manifests.read(copy)


def test_not_an_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no manifest.json"):
        manifests.read(tmp_path)
    with pytest.raises(ArtifactError, match="is not a folder"):
        manifests.read(tmp_path / "nowhere")
