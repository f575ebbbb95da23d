"""The steps of the Dockerfiles, run in a clean root, and what their images do."""

import dataclasses
import json
import re
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

import runtime
from deploy.clean_root import Mount, UnavailableError
from deploy.run_steps import CANNOT_RUN, FASTA, Image, Layers, StepError, build, checks, main
from exporter.publish import writable_copy
from runtime import manifest as manifests
from runtime.files import file_entry

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
HEALTHCHECK = ("esm2-run", "selftest", "/artifact")
# python:3.12.14-slim-bookworm on disk: docker-library/repo-info, 2026-08-13.
BASE_IMAGE_BYTES = 124_350_000
LIMIT_BYTES = 400_000_000
# What pip would install, without the gigabytes: metadata alone, by HTTP range requests.
REPORT = "opt/esm2/report.json"
RESOLVE = {"PIP_ARGS": f"--dry-run --use-feature=fast-deps --report /{REPORT}"}


@pytest.fixture(scope="module")
def layers() -> Iterator[Layers]:
    # Not among pytest's folders, of which the last three are kept: this is half a gigabyte.
    with tempfile.TemporaryDirectory() as folder:
        yield Layers(Path(folder))


def built(layers: Layers, path: Path, context: Path = ROOT, **arguments: str) -> Image:
    lines: list[str] = []
    try:
        image = build(path, context, layers, arguments, lines.append)
    except UnavailableError as error:
        pytest.skip(f"not run: {error}")
    # Every step of the file, in its order, was one line.
    steps = [line.split(maxsplit=2)[2] for line in lines if re.match(r" *\d+\.\d s  ", line)]
    order = [step.split()[0] for step in steps]
    assert order == re.findall(r"^([A-Z]+) ", path.read_text(), re.MULTILINE)
    return image


def pinned() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text() + (DEPLOY / "constraints.txt").read_text()
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {canonical(name): version for name, version in pins}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def cpu(layers: Layers) -> Image:
    return built(layers, DEPLOY / "Dockerfile.cpu")


class TestCpu:
    def test_it_does_what_it_is_for(self, cpu: Image, tiny_artifact: Path, tmp_path: Path) -> None:
        """Read-only root, no network, a user without a home."""
        assert cpu.healthcheck == HEALTHCHECK
        results = list(checks(cpu, tiny_artifact, tmp_path))
        assert [what.split()[:2] for what, _ in results] == [
            ["esm2-run", "selftest"], ["esm2-run", "--help"], ["esm2-run", "embed"]
        ]  # fmt: skip
        assert [problem for _, problem in results if problem] == []
        with np.load(tmp_path / "embeddings.npz") as file:
            embeddings = file["embeddings"]
        batch = runtime.PackedBatch.from_sequences(FASTA.split()[1::2])
        with runtime.load(tiny_artifact, "onnx") as engine:
            expected = engine.embed(batch, engine.spec.layers[-1], "mean")
        assert np.linalg.norm(embeddings - expected) <= 2e-6 * np.linalg.norm(expected)

    def test_size(self, cpu: Image, capsys: pytest.CaptureFixture[str]) -> None:
        with capsys.disabled():
            click.echo(f"\nDockerfile.cpu adds {cpu.added_bytes:,} bytes to its base image")
        assert 100_000_000 < cpu.added_bytes < LIMIT_BYTES - BASE_IMAGE_BYTES

    def test_contents(self, cpu: Image) -> None:
        metadata = [path for path in cpu.files if path.match("*.dist-info/METADATA")]
        found = dict(
            path.parent.name.removesuffix(".dist-info").rsplit("-", 1) for path in metadata
        )
        found = {canonical(name): version for name, version in found.items()}
        assert found.pop("esm2-engines")
        assert not found.keys() & {"torch", "fair-esm", "onnx", "pip", "setuptools"}
        assert "onnxruntime" in found
        assert found.items() <= pinned().items()
        places = {path.parts[path.parts.index("files") + 1] for path in cpu.files}
        assert places == {"etc", "opt"}

    def test_no_compiler(self, cpu: Image) -> None:
        """Neither to build with nor to run with: the steps had none."""
        result = cpu.run("/bin/sh", "-c", "command -v cc gcc c++ g++ clang make nvcc; echo end")
        assert result.stdout == "end\n"

    def test_not_root(self, cpu: Image) -> None:
        assert cpu.user == "10001:10001"
        assert cpu.run("id", "-u").stdout == "10001\n"
        assert "Groups:\t\n" in cpu.run("cat", "/proc/self/status").stdout.replace(" \n", "\n")
        venv = cpu.root.layers[-1] / "files/opt/esm2"
        assert {path.stat().st_uid for path in venv.rglob("*") if not path.is_symlink()} == {0}

    def test_any_user_without_a_home(self, cpu: Image, tiny_artifact: Path) -> None:
        """As OpenShift starts containers, and without HOME."""
        anybody = dataclasses.replace(cpu, user="1000650000:0")
        mounts = [Mount(tiny_artifact, "/artifact")]
        result = anybody.run("env", "--unset=HOME", *cpu.healthcheck, mounts=mounts)
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""

    def test_no_telemetry(self, cpu: Image, tiny_artifact: Path, tmp_path: Path) -> None:
        """onnxruntime would first of all make an id of this device in the user's home."""
        tmp_path.chmod(0o777)
        mounts = [Mount(tiny_artifact, "/artifact"), Mount(tmp_path, "/home/x", read_only=False)]
        loads = "import onnxruntime; onnxruntime.InferenceSession('/artifact/model.onnx')"
        home = ["env", "HOME=/home/x"]
        assert cpu.run(*home, *cpu.healthcheck, mounts=mounts).returncode == 0
        assert list(tmp_path.rglob("*")) == []
        assert cpu.run(*home, "python", "-c", loads, mounts=mounts).returncode == 0
        assert [path for path in tmp_path.rglob("*") if path.name == "deviceid"]


class TestHealthcheckFails:
    """In the image, by the exact command: 0 is healthy, all else is not."""

    @staticmethod
    def check(cpu: Image, artifact: Path) -> tuple[int, str]:
        result = cpu.run(*cpu.healthcheck, mounts=[Mount(artifact, "/artifact")])
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


class TestGpu:
    """Every step, but pip resolves the pinned versions for the image's Python and installs none."""

    @pytest.mark.parametrize(
        ("name", "arguments", "wanted", "unwanted"),
        [
            (
                "cuda",
                {},
                {"onnxruntime-gpu", "nvidia-cuda-runtime", "nvidia-cudnn-cu13", "h5py"},
                {"onnxruntime", "torch", "fair-esm", "onnx"},
            ),
            (
                "tensorrt",
                {"EXTRAS": "tensorrt-rtx,hdf5"},
                {"tensorrt-rtx", "tensorrt-rtx-cu13-libs", "cuda-bindings", "h5py"},
                {"onnxruntime", "torch", "fair-esm", "onnx"},
            ),
        ],
        ids=["cuda", "tensorrt-rtx"],
    )
    def test_steps(
        self, layers: Layers, name: str, arguments: dict[str, str],
        wanted: set[str], unwanted: set[str],
    ) -> None:  # fmt: skip
        image = built(layers, DEPLOY / f"Dockerfile.{name}", **RESOLVE, **arguments)
        assert image.user == "10001:10001"
        assert image.healthcheck == HEALTHCHECK
        assert image.entrypoint == ("esm2-run",)
        self.check_report(image, wanted, unwanted)

    def test_tensorrt_itself(self, layers: Layers) -> None:
        index = "https://pypi.nvidia.com/tensorrt-cu13-libs/"
        try:
            urllib.request.urlopen(index, timeout=5).close()
        except OSError as error:
            pytest.skip(f"not run: TensorRT's libraries come from {index} ({error})")
        image = built(layers, DEPLOY / "Dockerfile.tensorrt", **RESOLVE)
        self.check_report(image, {"tensorrt", "cuda-bindings"}, {"torch", "onnxruntime"})

    @staticmethod
    def check_report(image: Image, wanted: set[str], unwanted: set[str]) -> None:
        report = json.loads(image.root.read_text(REPORT))
        assert report["environment"]["python_version"] == "3.12"
        found = {
            canonical(package["metadata"]["name"]): package["metadata"]["version"]
            for package in report["install"]
        }
        assert found.pop("esm2-engines")
        assert found.keys() >= wanted
        assert not found.keys() & unwanted
        assert found.items() <= pinned().items()


class TestSteps:
    """What runs the steps: a step that fails, or that is not understood, is never passed over."""

    @pytest.fixture
    def context(self, tmp_path: Path) -> Path:
        (tmp_path / ".dockerignore").write_text("# of a test\n*\n!kept\n**/*.pyc\n")
        (tmp_path / "kept").mkdir()
        for name in ("kept/file", "kept/file.pyc", "secret"):
            (tmp_path / name).write_text(f"{name}\n")
        return tmp_path

    def run(self, layers: Layers, context: Path, steps: str) -> Image:
        path = context / "Dockerfile"
        path.write_text(f"ARG TAG=3.12-slim\nFROM python:${{TAG}} AS first\n{steps}")
        return built(layers, path, context)

    def test_what_steps_see(self, layers: Layers, context: Path) -> None:
        image = self.run(layers, context, (
            'ARG WORD=hello\nENV TWO="a b" PATH=/opt/x:${PATH}\nWORKDIR /made\nWORKDIR here\n'
            "COPY kept files\nCOPY kept/file ./\n"
            "RUN find . -type f | sort > /listed && pwd >> /listed \\\n"
            '    && echo "$WORD $TWO $USER $(id -u) ${PATH%%:*}" >> /listed\n'
            "FROM python:3.12-slim\nCOPY --from=first /made/here /listed /copied/\n"
            'USER 1234:5\nENTRYPOINT ["cat"]\nCMD ["/copied/listed"]\n'
        ))  # fmt: skip
        result = image.run(*image.entrypoint, *image.command)
        assert result.stdout.splitlines() == [
            "./file", "./files/file", "/made/here", "hello a b  0 /opt/x"
        ]  # fmt: skip
        assert image.run("id", "-u").stdout == "1234\n"
        assert "Read-only file system" in image.run("touch", "/tmp/x").stderr
        assert image.run("test", "-e", "/made").returncode == 1
        assert image.run("test", "-e", str(ROOT)).returncode == 1

    @pytest.mark.parametrize(
        ("steps", "message"),
        [
            ("RUN echo reason >&2; exit 3\n", "exit status 3\nreason"),
            ("COPY secret /\n", "secret is not in the build context"),
            ("COPY --chmod=700 kept /\n", "--chmod is not known"),
            ("RUN --network=none true\n", "--network=none is not known"),
            ("SHELL [\"/bin/bash\"]\n", "this form is not known"),
            ("ENV A=${NOWHERE}\n", "'NOWHERE' is not set"),
            ("FROM nvidia/cuda:13.0.0-base\n", "python:\\*-slim images alone"),
        ],
    )  # fmt: skip
    def test_what_fails(self, layers: Layers, context: Path, steps: str, message: str) -> None:
        with pytest.raises(StepError, match=message):
            self.run(layers, context, steps)

    def test_a_machine_that_cannot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        result = CliRunner().invoke(main, [str(DEPLOY / "Dockerfile.cpu")])
        assert result.exit_code == CANNOT_RUN
        assert re.fullmatch(r"not run: chroot, .* not found: .*\n", result.stdout)
