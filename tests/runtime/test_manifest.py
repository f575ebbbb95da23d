import json
from pathlib import Path

import pytest

from exporter.publish import writable_copy
from runtime import manifest as manifests
from runtime.engine import load
from runtime.errors import ArtifactError

FILES = [
    "golden.npz", "lib/libesm2_ops.so", "lib/libesm2_ort.so", "manifest.json", "model.onnx",
    "model.ts", "parity.html", "parity.json", "weights.safetensors",
]  # fmt: skip


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return writable_copy(artifact, tmp_path / "copy")


def test_reads_what_was_written(artifact: Path) -> None:
    manifest = manifests.read(artifact)
    assert manifest.architecture.num_layers == 6
    assert set(manifest.engines) == {"torchscript", "onnx"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.31, 0.77, 1.0])
def test_a_flipped_byte_in_any_file_is_refused_by_name(copy: Path, name: str, place: float) -> None:
    path = copy / name
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        load(copy)


def test_every_byte_of_the_manifest_is_sealed(copy: Path) -> None:
    path = copy / "manifest.json"
    original = path.read_bytes()
    for i in range(len(original)):
        data = bytearray(original)
        data[i] ^= 4
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match=r"manifest\.json"):
            manifests.read(copy, check_files=False)


def test_the_files_tested_are_all_there_are(artifact: Path) -> None:
    files = (path for path in artifact.rglob("*") if path.is_file())
    assert sorted(path.relative_to(artifact).as_posix() for path in files) == FILES


def test_missing_and_cut_files_are_named_together(copy: Path) -> None:
    (copy / "model.ts").unlink()
    (copy / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(ArtifactError) as error:
        load(copy)
    assert "model.ts is missing" in str(error.value)
    assert "weights.safetensors has 5 bytes" in str(error.value)


@pytest.mark.parametrize(
    ("version", "advice"), [(manifests.SCHEMA_VERSION + 1, "Upgrade"), (0, "Export again")]
)
def test_another_schema_version(copy: Path, version: int, advice: str) -> None:
    path = copy / "manifest.json"
    fields = json.loads(path.read_text())
    fields["schema_version"] = version
    path.write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match=f"schema version {version}, this runtime .* {advice}"):
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
