"""The images: built for real from the Dockerfiles, and used as their users do."""

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

import runtime
from exporter.publish import writable_copy
from runtime import manifest as manifests
from runtime.files import file_entry
from tests.deploy.images import ROOT, Image, built

pytestmark = pytest.mark.slow

FASTA = ">a\nMKTAYIAKQRQISFVKSHFSRQ\n>b\nGGAVLIPFMWDEKR\n"
ARTIFACT = "/artifact:ro"
# Of python:3.12-slim-bookworm's 124 MB and this, no more than 400 MB.
LIMIT_BYTES = 276_000_000


def pinned() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text() + (ROOT / "deploy/constraints.txt").read_text()
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {canonical(name): version for name, version in pins}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def cpu() -> Iterator[Image]:
    with built("cpu") as image:
        yield image


class TestCpu:
    def test_it_does_what_it_is_for(self, cpu: Image, tiny_artifact: Path, tmp_path: Path) -> None:
        """Without a network, as its own user, and nothing is written but what was asked for."""
        before = files_of(cpu)
        tmp_path.chmod(0o777)
        volumes = {ARTIFACT: tiny_artifact, "/output": tmp_path}
        assert cpu.config["Entrypoint"] == ["esm2-run"]
        embed = ["esm2-run", "embed", "/artifact", "-", "-o", "/output/embeddings.npz"]
        for command in (cpu.healthcheck, ["esm2-run", *cpu.config["Cmd"]], embed):
            result = cpu.run(*command, volumes=volumes, stdin=FASTA)
            assert result.returncode == 0, result.stdout + result.stderr
        with np.load(tmp_path / "embeddings.npz") as file:
            embeddings = file["embeddings"]
        batch = runtime.PackedBatch.from_sequences(FASTA.split()[1::2])
        with runtime.load(tiny_artifact, "onnx") as engine:
            expected = engine.embed(batch, engine.spec.layers[-1], "mean")
        assert np.linalg.norm(embeddings - expected) <= 2e-6 * np.linalg.norm(expected)
        assert files_of(cpu) == before

    def test_contents(self, cpu: Image) -> None:
        metadata = (cpu.root / "opt/esm2").rglob("*.dist-info/METADATA")
        found = dict(
            path.parent.name.removesuffix(".dist-info").rsplit("-", 1) for path in metadata
        )
        found = {canonical(name): version for name, version in found.items()}
        assert found.pop("esm2-engines")
        assert not found.keys() & {"torch", "fair-esm", "onnx", "pip", "setuptools"}
        assert "onnxruntime" in found
        assert found.items() <= pinned().items()

    def test_size(self, cpu: Image) -> None:
        files = [p for p in (cpu.root / "opt/esm2").rglob("*") if not p.is_symlink()]
        assert 100_000_000 < sum(path.stat().st_size for path in files) < LIMIT_BYTES
        assert {path.stat().st_uid for path in files} == {0}

    def test_no_compiler(self, cpu: Image) -> None:
        """Neither to build with nor to run with: the steps had none."""
        result = cpu.run("/bin/sh", "-c", "command -v cc gcc c++ g++ clang make nvcc; echo end")
        assert result.stdout == "end\n"

    def test_not_root(self, cpu: Image) -> None:
        assert cpu.config["User"] == "10001:10001"
        assert cpu.run("id", "-u").stdout == "10001\n"

    def test_any_user_without_a_home(self, cpu: Image, tiny_artifact: Path) -> None:
        """As OpenShift starts containers, and without HOME."""
        command = ["env", "--unset=HOME", *cpu.healthcheck]
        result = cpu.run(*command, volumes={ARTIFACT: tiny_artifact}, user="1000650000:0")
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""

    def test_no_telemetry(self, cpu: Image, tiny_artifact: Path, tmp_path: Path) -> None:
        """onnxruntime would first of all make an id of this device in the user's home."""
        tmp_path.chmod(0o777)
        volumes = {ARTIFACT: tiny_artifact, "/home/x": tmp_path}
        loads = "import onnxruntime; onnxruntime.InferenceSession('/artifact/model.onnx')"
        home = ["env", "HOME=/home/x"]
        assert cpu.run(*home, *cpu.healthcheck, volumes=volumes).returncode == 0
        assert list(tmp_path.rglob("*")) == []
        assert cpu.run(*home, "python", "-c", loads, volumes=volumes).returncode == 0
        assert [path for path in tmp_path.rglob("*") if path.name == "deviceid"]


def files_of(image: Image) -> set[str]:
    """But for what a container is given: devices, and the places of volumes."""
    found = (path.relative_to(image.root) for path in image.root.rglob("*"))
    return {str(p) for p in found if p.parts[0] not in ("dev", "proc", "sys", "artifact", "output")}


@pytest.fixture(scope="module")
def server() -> Iterator[Image]:
    with built("cpu", "--target=server", "--build-arg=EXTRAS=onnx,server") as image:
        yield image


class TestServer:
    def test_it_serves(self, server: Image, tiny_artifact: Path) -> None:
        """Its own command, as its own user; its health check, before it is ready and after."""
        assert server.config["User"] == "10001:10001"
        assert server.config["Entrypoint"] == ["esm2-run"]
        before = files_of(server)
        # Loopback alone, without a network; SIGTERM is what ends a container.
        program = (
            "import os, signal, subprocess, sys, time\n"
            "check, command = map(eval, sys.argv[1:])\n"
            "serving = subprocess.Popen(command)\n"
            "states = [subprocess.run(check, stderr=subprocess.DEVNULL).returncode]\n"
            "while states[-1] and serving.poll() is None and len(states) < 300:\n"
            "    time.sleep(0.2)\n"
            "    states.append(subprocess.run(check, stderr=subprocess.DEVNULL).returncode)\n"
            "serving.send_signal(signal.SIGTERM)\n"
            "print(states[0], states[-1], serving.wait(60))\n"
        )
        command = ["esm2-run", *server.config["Cmd"]]
        result = server.run(
            "python", "-c", program, repr(server.healthcheck), repr(command),
            volumes={ARTIFACT: tiny_artifact},
        )  # fmt: skip
        assert result.stdout == "1 0 0\n", result.stdout + result.stderr
        assert files_of(server) == before

    def test_contents(self, server: Image) -> None:
        metadata = (server.root / "opt/esm2").rglob("*.dist-info/METADATA")
        found = dict(
            path.parent.name.removesuffix(".dist-info").rsplit("-", 1) for path in metadata
        )
        found = {canonical(name): version for name, version in found.items()}
        assert found.pop("esm2-engines")
        assert {"fastapi", "uvicorn", "prometheus-client"} <= found.keys()
        assert not found.keys() & {"torch", "fair-esm", "onnx", "httpx", "pip"}
        assert found.items() <= pinned().items()

    def test_size(self, server: Image) -> None:
        files = [p for p in (server.root / "opt/esm2").rglob("*") if not p.is_symlink()]
        assert sum(path.stat().st_size for path in files) < LIMIT_BYTES


class TestHealthcheckFails:
    """In the image, by the exact command: 0 is healthy, all else is not."""

    @staticmethod
    def check(cpu: Image, artifact: Path) -> tuple[int, str]:
        result = cpu.run(*cpu.healthcheck, volumes={ARTIFACT: artifact})
        return result.returncode, result.stdout + result.stderr

    @pytest.fixture
    def copy(self, tiny_artifact: Path, tmp_path: Path) -> Path:
        writable_copy(tiny_artifact, tmp_path / "artifact")
        return tmp_path / "artifact"

    @staticmethod
    def seal(folder: Path, path: Path) -> None:
        """Makes the manifest agree with the changed file."""
        manifest = manifests.read(folder, check_files=False)
        files = {**manifest.files, path.name: file_entry(path)}
        manifests.write(msgspec.structs.replace(manifest, files=files), folder)

    def test_a_flipped_byte_of_the_weights(self, cpu: Image, copy: Path) -> None:
        path = copy / "weights.safetensors"
        data = bytearray(path.read_bytes())
        data[-2] ^= 0x40  # of the last float32, its exponent
        path.write_bytes(data)
        status, output = self.check(cpu, copy)
        assert status == 2
        assert "weights.safetensors" in output
        self.seal(copy, path)
        status, output = self.check(cpu, copy)
        assert status == 1, output
        assert "failed its selftest" in output

    def test_other_stored_answers(self, cpu: Image, copy: Path) -> None:
        path = copy / "golden.npz"
        with np.load(path) as file:
            arrays = dict(file)
        arrays["logits"] = arrays["logits"] * (1 + 1e-4)
        np.savez(path, **arrays)
        self.seal(copy, path)
        status, output = self.check(cpu, copy)
        assert status == 1, output
        assert "logits" in output

    def test_no_artifact(self, cpu: Image, tmp_path: Path) -> None:
        assert self.check(cpu, tmp_path)[0] == 2


# By its hash pip could not tell a package without downloading it.
WITHOUT_HASHES = "--build-arg=PINS=-c deploy/constraints.txt"


class TestGpu:
    """Every step, but pip resolves the pinned versions and installs none: they are gigabytes."""

    @pytest.mark.parametrize(
        ("name", "options", "wanted"),
        [
            (
                "cuda",
                [WITHOUT_HASHES],
                {"onnxruntime-gpu", "nvidia-cuda-runtime", "nvidia-cudnn-cu13", "h5py"},
            ),
            (
                "tensorrt",
                ["--build-arg=EXTRAS=tensorrt-rtx,hdf5"],
                {"tensorrt-rtx", "tensorrt-rtx-cu13-libs", "cuda-bindings", "h5py"},
            ),
        ],
        ids=["cuda", "tensorrt-rtx"],
    )
    def test_steps(self, name: str, options: list[str], wanted: set[str]) -> None:
        unwanted = {"onnxruntime", "torch", "fair-esm", "onnx"}
        with built(name, *options, RESOLVE) as image:
            assert image.config["User"] == "10001:10001"
            assert image.config["Entrypoint"] == ["esm2-run"]
            assert image.healthcheck == ["esm2-run", "selftest", "/artifact"]
            check_report(image, wanted, unwanted)

    def test_tensorrt_itself(self) -> None:
        index = "https://pypi.nvidia.com/tensorrt-cu13-libs/"
        try:
            urllib.request.urlopen(index, timeout=5).close()
        except OSError as error:
            pytest.skip(f"not run: TensorRT's libraries come from {index} ({error})")
        with built("tensorrt", RESOLVE) as image:
            check_report(image, {"tensorrt", "cuda-bindings"}, {"torch", "onnxruntime"})


REPORT = "opt/esm2/report.json"
RESOLVE = f"--build-arg=PIP_ARGS=--dry-run --use-feature=fast-deps --report /{REPORT}"


def check_report(image: Image, wanted: set[str], unwanted: set[str]) -> None:
    report = json.loads((image.root / REPORT).read_text())
    found = {
        canonical(package["metadata"]["name"]): package["metadata"]["version"]
        for package in report["install"]
    }
    found.pop("esm2-engines", None)  # where it was installed before
    assert found.keys() >= wanted
    assert not found.keys() & unwanted
    assert found.items() <= pinned().items()
