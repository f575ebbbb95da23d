"""``examples/node``: the ONNX engine from JavaScript gives Python's answers, with no op library."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.publish import writable_copy
from tests.examples.outputs import BAD_FASTA, EXAMPLES, compare, golden_sequences, write_fasta

pytestmark = pytest.mark.slow

FOLDER = EXAMPLES / "node"
Embed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def packages() -> None:
    """``onnxruntime-node`` beside the example, installed when first needed."""
    for command in ("node", "npm"):
        if shutil.which(command) is None:
            pytest.skip(f"there is no {command} on PATH: install Node.js 20 or later")
    installed = FOLDER / "node_modules" / ".package-lock.json"
    wanted = FOLDER / "package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= wanted.stat().st_mtime:
        return
    environment = {**os.environ, "ONNXRUNTIME_NODE_INSTALL_CUDA": "skip"}
    result = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund"], cwd=FOLDER, env=environment,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if re.search("code (ECONNREFUSED|ENOTFOUND|EAI_AGAIN|ETIMEDOUT)", result.stderr):
        pytest.skip("npm reaches no registry, so onnxruntime-node cannot be installed")
    assert result.returncode == 0, result.stderr


@pytest.fixture
def embed(packages: None, tmp_path: Path) -> Embed:
    def run(artifact: Path, fasta: Path):  # type: ignore[no-untyped-def]
        return subprocess.run(
            ["node", FOLDER / "embed.mjs", artifact, fasta, tmp_path / "out"],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that says why."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("embed: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_answers_are_pythons(embed: Embed, artifact: Path, tmp_path: Path) -> None:
    alone = tmp_path / "artifact"
    shutil.copytree(artifact, alone, ignore=shutil.ignore_patterns("lib", "*.ts", "parity.*"))
    result = embed(alone, write_fasta(tmp_path / "golden.fasta", golden_sequences(artifact)))
    assert (result.returncode, result.stderr) == (0, "")
    distances = compare(tmp_path / "out", artifact, "onnx")
    # Python runs the native op, JavaScript the function of standard ops: two float32 roundings.
    assert max(distances.values()) <= 2e-6, distances


def test_weights(embed: Embed, tiny_artifact: Path, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "x.fasta", ("MKTAYIAKQR",))
    folder = writable_copy(tiny_artifact, tmp_path / "artifact")
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"cannot load {folder / 'model.onnx'}" in refused(embed(folder, fasta))
    weights.unlink()
    line = refused(embed(folder, fasta))
    assert f"cannot load {folder / 'model.onnx'}" in line
    assert "weights.safetensors" in line


@pytest.mark.parametrize(("text", "message"), BAD_FASTA)
def test_fasta(embed: Embed, tiny_artifact: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.fasta"
    path.write_text(text)
    assert message in refused(embed(tiny_artifact, path))


def test_no_artifact(embed: Embed, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "x.fasta", ("MK",))
    assert "is not an artifact: no manifest.json" in refused(embed(tmp_path, fasta))
