"""``examples/cpp``: C++ gives Python's answers, and says in one line what is wrong."""

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.gpu_check.cpp import NoProgramError, build, check_answers
from exporter.publish import writable_copy
from runtime import manifest as manifests
from tests.examples.outputs import BAD_FASTA, compare, golden_sequences, write_fasta

pytestmark = pytest.mark.slow

Embed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``examples/cpp`` built by CMake, once a session (40 s of one core)."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("there is no C++ compiler here: install g++ or clang++, or name one in CXX")
    return build(tmp_path_factory.mktemp("cpp"), ["-DCMAKE_CXX_FLAGS=-Werror"])


@pytest.fixture
def embed(program: Path, tmp_path: Path) -> Embed:
    def run(artifact: Path, *engine: str, fasta: Path | None = None, **environment: str):  # type: ignore[no-untyped-def]
        fasta = fasta or write_fasta(tmp_path / "short.fasta", ("MKTAYIAKQR", "GGAVL"))
        return subprocess.run(
            [program, artifact, fasta, tmp_path / "out", *engine],
            capture_output=True, text=True, timeout=300, env={**os.environ, **environment},
        )  # fmt: skip

    return run


@pytest.fixture
def copied(tiny_artifact: Path, tmp_path: Path) -> Path:
    return writable_copy(tiny_artifact, tmp_path / "artifact")


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that says why."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("embed: ")
    assert result.stderr.count("\n") == 1
    assert not result.stdout
    return result.stderr


@pytest.mark.parametrize("engine", ["torchscript", "aoti"])
def test_answers_are_pythons(
    embed: Embed, engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = {"torchscript": "artifact", "aoti": "compiled_artifact"}[engine]
    artifact: Path = request.getfixturevalue(name)
    fasta = write_fasta(tmp_path / "golden.fasta", golden_sequences(artifact))
    result = embed(artifact, engine, fasta=fasta)
    assert (result.returncode, result.stderr) == (0, "")
    distances = compare(tmp_path / "out", artifact, engine)
    # The same kernels: 0 in every run seen. Sums that are split among other threads may differ.
    assert max(distances.values()) <= 1e-6, distances


def test_gpu_check_holds_them_to_the_limits(program: Path, copied: Path) -> None:
    """As on a card."""
    assert check_answers(program, copied, "torchscript", "cpu") == ("passed", "")
    status, reason = check_answers(program, copied, "aoti", "cpu")
    assert status == "failed"
    assert reason.startswith("embed: artifact holds no engine 'aoti' ")
    manifest = manifests.read(copied)
    limits = {name: limit / 1e6 for name, limit in manifest.golden.limits.items()}
    golden = msgspec.structs.replace(manifest.golden, limits=limits)
    manifests.write(msgspec.structs.replace(manifest, golden=golden), copied)
    status, reason = check_answers(program, copied, "torchscript", "cpu")
    assert status == "failed"
    assert ": relative L2 " in reason and ", expected at most " in reason


def test_gpu_check_says_why_there_is_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        NoProgramError, match="there is no C\\+\\+ compiler 'no-such-compiler' here"
    ):
        build(tmp_path)


class TestCompiledEngine:
    @pytest.fixture
    def copied(self, compiled_artifact: Path, tmp_path: Path) -> Path:
        return writable_copy(compiled_artifact, tmp_path / "artifact")

    def test_for_another_processor(self, embed: Embed, copied: Path) -> None:
        manifest = json.loads((copied / "manifest.json").read_text())
        manifest["engines"]["aoti"]["instructions"] = "those of PDP-11"
        (copied / "manifest.json").write_text(json.dumps(manifest))
        assert "is built for those of PDP-11, and this processor is" in refused(
            embed(copied, "aoti")
        )

    def test_weights_of_another_dtype(self, embed: Embed, copied: Path) -> None:
        path = copied / "weights.safetensors"
        state = load_file(path)
        state["layers.1.fc1.bias"] = state["layers.1.fc1.bias"].half()
        save_file(state, path)
        assert "holds no 'layers.1.fc1.bias' of the right dtype" in refused(embed(copied, "aoti"))

    def test_damaged(self, embed: Embed, copied: Path) -> None:
        path = copied / "model.pt2"
        path.write_bytes(path.read_bytes()[:1000])
        assert f"cannot load {path}" in refused(embed(copied, "aoti"))

    def test_none_in_the_artifact(self, embed: Embed, tiny_artifact: Path) -> None:
        assert "holds no engine 'aoti'" in refused(embed(tiny_artifact, "aoti"))


class TestOpLibrary:
    @pytest.fixture
    def library(self, copied: Path) -> Path:
        return copied / "lib" / "libesm2_ops.so"

    def test_missing(self, embed: Embed, copied: Path, library: Path) -> None:
        library.unlink()
        assert f"there is no {library}" in refused(embed(copied))

    def test_no_library_at_all(self, embed: Embed, copied: Path, library: Path) -> None:
        library.write_text("#!/bin/sh\n" * 100)
        assert f"cannot load {library}" in refused(embed(copied))

    def test_of_another_processor(self, embed: Embed, copied: Path, library: Path) -> None:
        data = bytearray(library.read_bytes())
        data[18:20] = struct.pack("<H", 8)  # e_machine of the ELF header: MIPS
        library.write_bytes(data)
        assert "for another processor, system or PyTorch" in refused(embed(copied))

    def test_of_another_project(self, embed: Embed, copied: Path, library: Path) -> None:
        shutil.copy(library.with_name("libesm2_ort.so"), library)
        assert "does not register esm2::varlen_attention" in refused(embed(copied))

    def test_older_than_pytorch(self, embed: Embed, copied: Path, library: Path) -> None:
        """Whose flash kernel would read past the values that the library hands over."""
        library.rename(library.with_name("libreal.so"))
        source = 'extern "C" int esm2_dispatcher_stack() { return 15; }'
        command = (
            "c++ -x c++ - -shared -fPIC -Wl,--no-as-needed -Wl,-rpath,$ORIGIN -L. -l:libreal.so"
        )
        subprocess.run(
            [*command.split(), "-o", library.name], cwd=library.parent, input=source, text=True,
            check=True,
        )  # fmt: skip
        takes = len(torch.ops.aten._flash_attention_forward.default._schema.arguments)
        assert f"takes {takes} arguments, expected at most 15" in refused(embed(copied))

    def test_started_by_a_python_that_has_defined_the_op(self, embed: Embed, copied: Path) -> None:
        """The variable names that process: what it says is not for its children."""
        assert embed(copied, ESM2_OPS_IN_PYTHON=str(os.getpid())).returncode == 0


class TestWeights:
    @pytest.fixture
    def weights(self, copied: Path) -> Path:
        return copied / "weights.safetensors"

    def test_missing(self, embed: Embed, copied: Path, weights: Path) -> None:
        weights.unlink()
        assert f"cannot read {weights}: No such file" in refused(embed(copied))

    def test_a_parameter_is_missing(self, embed: Embed, copied: Path, weights: Path) -> None:
        state = load_file(weights)
        del state["layers.1.fc1.bias"], state["inv_freq"]
        save_file(state, weights)
        line = refused(embed(copied))
        assert "does not fit model.ts: it holds no 'layers.1.fc1.bias', and 1 more" in line

    @pytest.mark.parametrize("change", [torch.Tensor.half, lambda bias: bias[:-1].clone()])
    def test_other_dtype_or_shape(
        self, embed: Embed, copied: Path, weights: Path, change: Callable[..., torch.Tensor]
    ) -> None:
        state = load_file(weights)
        state["layers.1.fc1.bias"] = change(state["layers.1.fc1.bias"])
        save_file(state, weights)
        assert "'layers.1.fc1.bias' is " in refused(embed(copied))

    @pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
    def test_cut_short(self, embed: Embed, copied: Path, weights: Path, kept: int) -> None:
        weights.write_bytes(weights.read_bytes()[:kept])
        assert f"{weights} is damaged or no safetensors file" in refused(embed(copied))

    def test_longer(self, embed: Embed, copied: Path, weights: Path) -> None:
        weights.write_bytes(weights.read_bytes() + b"\0")
        assert "its data and its header differ in length" in refused(embed(copied))

    @pytest.mark.parametrize(
        "header",
        [
            b"[]", b'{"x": 1}', b'{"x": {}}', b"{", b"\xff" * 8, b"[" * 1_000_000,
            b'{"x":{"dtype":"F99","shape":[],"data_offsets":[0,4]}}',
            b'{"x":{"dtype":7,"shape":[],"data_offsets":[0,4]}}',
            b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
            b'{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
            b'{"x":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}',
            b'{"x":{"dtype":"F32","shape":{"a":1},"data_offsets":[0,4]}}',
            b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
            b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0]}}',
            b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
            b'{"x":{"dtype":"F32","shape":[0],"data_offsets":[99,99]}}',
            # Products that wrap around to 4 bytes, or to none.
            b'{"x":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}}',
            b'{"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
            b'{"x":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}}',
            b'{"x":{"dtype":"F32","shape":[99999999999999999999999],"data_offsets":[0,4]}}',
            b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        ],
        ids=lambda header: header[:60].decode(errors="replace"),
    )  # fmt: skip
    def test_hostile_header(self, embed: Embed, copied: Path, weights: Path, header: bytes) -> None:
        # As the format's writers do, so that each header is refused for what is wrong in it.
        header += b" " * (-len(header) % 8)
        weights.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
        assert f"{weights} is damaged or no safetensors file" in refused(embed(copied))

    @pytest.mark.parametrize("length", [2**32, 2**63, 2**64 - 8, 2**64 - 1])
    def test_hostile_header_length(
        self, embed: Embed, copied: Path, weights: Path, length: int
    ) -> None:
        weights.write_bytes(struct.pack("<Q", length) + weights.read_bytes()[8:])
        assert "it ends within the header" in refused(embed(copied))

    def test_misaligned(self, embed: Embed, copied: Path, weights: Path) -> None:
        header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        header += b" " * (-len(header) % 8 + 1)
        weights.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
        assert "'x': its data is not aligned" in refused(embed(copied))


class TestArtifact:
    def test_no_folder(self, embed: Embed, tmp_path: Path) -> None:
        assert "is not an artifact: no manifest.json" in refused(embed(tmp_path / "none"))

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"engines": {"onnx": {}}}'])
    def test_manifest(self, embed: Embed, copied: Path, text: str) -> None:
        (copied / "manifest.json").write_text(text)
        refused(embed(copied))

    def test_without_torchscript(self, embed: Embed, copied: Path) -> None:
        path = copied / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["engines"]["torchscript"]
        path.write_text(json.dumps(manifest))
        assert "holds no engine 'torchscript'" in refused(embed(copied))

    def test_damaged_model(self, embed: Embed, copied: Path) -> None:
        path = copied / "model.ts"
        path.write_bytes(path.read_bytes()[:1000])
        assert f"cannot load {path}" in refused(embed(copied))


@pytest.mark.parametrize(("text", "message"), BAD_FASTA)
def test_fasta(embed: Embed, tiny_artifact: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.fasta"
    path.write_text(text)
    assert message in refused(embed(tiny_artifact, fasta=path))
