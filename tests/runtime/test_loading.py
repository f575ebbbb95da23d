"""Which engine is taken, and what ``load`` raises."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnxruntime
import pytest
import torch

import runtime
from runtime import manifest as manifests
from runtime.engine import Settings
from runtime.engines.onnx import cpu as onnx
from runtime.engines.torch import aoti, torchscript
from runtime.files import FileEntry
from runtime.manifest_schema import Manifest
from runtime.manifest_upgrades import upgraded
from runtime.ops import varlen_attention
from runtime.selftest import selftest

ENGINES = ("onnx", "torchscript")


class AskedError(Exception):
    """Raised in place of loading: this engine was chosen."""


@pytest.fixture
def cuda_torch(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """PyTorch sees a card; the devices that TorchScript was asked to load on."""
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))

    def load(folder: Path, manifest: object, device: str, settings: object) -> None:
        asked.append(device)
        raise AskedError

    monkeypatch.setattr(torchscript, "load", load)
    return asked


class TestDevice:
    @pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:-1", "cuda:x", "cuda1", "CUDA", ""])
    def test_what_is_none_is_refused(self, artifact: Path, device: str) -> None:
        with pytest.raises(runtime.EngineError, match="must be auto, cpu, cuda or cuda:N") as error:
            runtime.load(artifact, device=device)
        assert repr(device) in str(error.value)

    def test_another_card_is_passed_on(
        self, artifact: Path, cuda_torch: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(runtime.EngineError):
            runtime.load(artifact, "torchscript", "cuda:1")
        assert cuda_torch == ["cuda:1"]
        with pytest.raises(runtime.UnsupportedError, match="sees 2 GPUs, the last of them cuda:1"):
            runtime.load(artifact, "torchscript", "cuda:2")
        assert cuda_torch == ["cuda:1"]

    def test_aoti_opens_its_package_on_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = []
        monkeypatch.setattr(
            torch._C._aoti, "AOTIModelContainerRunnerCuda",
            lambda *arguments: opened.append(arguments[2]), raising=False,
        )  # fmt: skip
        aoti._open_runner(Path("folder/model.so"), "cuda:1")
        assert opened == ["cuda:1"]


def rewrite(folder: Path, **fields: object) -> None:
    manifest = manifests.read(folder, check_files=False)
    manifests.write(msgspec.structs.replace(manifest, **fields), folder)


class TestAuto:
    @pytest.mark.parametrize("device", ["auto", "cuda"])
    def test_a_cuda_torch_beside_a_cpu_onnxruntime(
        self, ready_artifact: Path, cuda_torch: list[str], device: str
    ) -> None:
        with pytest.raises(runtime.EngineError):
            runtime.load(ready_artifact, device="cuda")
        assert cuda_torch == ["cuda"]

    def test_on_a_card_torchscript_is_before_onnx(
        self, ready_artifact: Path, cuda_torch: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            onnxruntime, "get_available_providers",
            lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        )  # fmt: skip
        with runtime.load(ready_artifact) as engine:
            assert cuda_torch == ["cuda"]
            # Refused at load, passed over: so is ONNX Runtime's CUDA, which does not start here.
            assert (engine.spec.format, engine.spec.device) == ("onnx", "cpu")

    @pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
    @pytest.mark.parametrize("device", ["auto", "cuda"])
    def test_onnxruntime_gpu_without_a_card(
        self, ready_artifact: Path, monkeypatch: pytest.MonkeyPatch, device: str
    ) -> None:
        monkeypatch.setattr(
            onnxruntime, "get_available_providers",
            lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        )  # fmt: skip
        if device == "auto":
            with runtime.load(ready_artifact, "onnx") as engine:
                assert engine.spec.device == "cpu"
        else:
            with pytest.raises(runtime.UnsupportedError, match="could not start its CUDA provider"):
                runtime.load(ready_artifact, "onnx", device)

    def test_bfloat16_on_a_cpu_is_not_for_onnx(self, ready_artifact: Path) -> None:
        rewrite(ready_artifact, dtype="bfloat16")
        with runtime.load(ready_artifact) as engine:
            assert engine.spec.format == "torchscript"
        with pytest.raises(runtime.UnsupportedError, match="no bfloat16 kernels for CPUs"):
            runtime.load(ready_artifact, "onnx")

    @pytest.mark.parametrize(
        ("asked", "sentence"),
        [
            ({"cuda_graphs": True}, "with CUDA graphs: "),
            ({"attention": "flash"}, "attention 'flash'"),
            ({"device": "cuda"}, "sees no GPU"),
        ],
    )
    @pytest.mark.skipif(torch.cuda.is_available(), reason="describes a machine without GPU")
    def test_where_none_is_left_each_says_why(
        self, ready_artifact: Path, asked: dict[str, object], sentence: str
    ) -> None:
        with pytest.raises(runtime.UnsupportedError) as error:
            runtime.load(ready_artifact, **asked)  # type: ignore[arg-type]
        message = str(error.value)
        assert sentence in message
        assert "\n" not in message
        devices = [str(asked["device"])] if "device" in asked else ["cuda", "cpu"]
        for name in ENGINES:
            assert all(f"{name} on {device}: " in message for device in devices)
        absent = ["aoti-cuda", "onnx-cuda", "tensorrt"] + ["aoti"] * ("cpu" in devices)
        assert message.endswith(f"; not in the artifact: {', '.join(absent)}")

    def test_what_fails_to_load_is_passed_over(self, ready_artifact: Path) -> None:
        (ready_artifact / "model.onnx").write_bytes(b"of an opset that this library does not know")
        with runtime.load(ready_artifact, check_files=False) as engine:
            assert engine.spec.format == "torchscript"
        (ready_artifact / "model.ts").write_bytes(b"neither")
        with pytest.raises(runtime.EngineError) as error:
            runtime.load(ready_artifact, check_files=False)
        assert not isinstance(error.value, runtime.UnsupportedError)
        for file in ("model.onnx", "model.ts"):
            assert f"cannot load {ready_artifact / file}: " in str(error.value)

    def test_choosing_and_loading_ask_the_same(self, ready_artifact: Path) -> None:
        manifest = manifests.read(ready_artifact)
        reasons = onnx.unsupported_reasons(manifest, "cpu", Settings(cuda_graphs=True))
        with pytest.raises(runtime.UnsupportedError) as error:
            runtime.load(ready_artifact, "onnx", "cpu", cuda_graphs=True)
        assert "; ".join(reasons) in str(error.value)


@pytest.mark.parametrize("file", ["model.onnx", "weights.safetensors"])
def test_the_files_of_an_engine_are_checked_and_no_others(ready_artifact: Path, file: str) -> None:
    path = ready_artifact / file
    flip(path, path.stat().st_size // 2)
    with pytest.raises(runtime.ArtifactError, match=f"{file} was changed"):
        runtime.load(ready_artifact, "onnx")
    if file == "model.onnx":
        with runtime.load(ready_artifact, "torchscript"):
            pass
    with pytest.raises(runtime.ArtifactError, match=f"{file} was changed"):
        runtime.load(ready_artifact, "torchscript", validate=True, check_files=False)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ENGINES)
def test_weights_that_change_under_an_engine_are_noticed(ready_artifact: Path, name: str) -> None:
    manifest = manifests.read(ready_artifact)
    with runtime.load(ready_artifact, name) as engine:
        assert selftest(engine, ready_artifact, manifest).passed
        path = ready_artifact / "weights.safetensors"
        whole = path.read_bytes()
        for damaged in (whole[:4000] + bytes(len(whole) - 4000), whole[:4000]):
            # In place, as "cp" does it: the file that the engine has mapped.
            path.chmod(0o644)
            with path.open("r+b") as file:
                file.write(damaged)
                file.truncate()
            with pytest.raises(runtime.ArtifactError, match=r"weights\.safetensors"):
                selftest(engine, ready_artifact, manifest)


FORK = """
import os, sys, runtime
batch = runtime.PackedBatch.from_sequences(["MKTAYIAK", "GG"])
engine = runtime.load(sys.argv[1], sys.argv[2], "cpu")
engine.run(batch)
child = os.fork()
if child == 0:
    for call in (engine.run, lambda batch: engine.embed(batch, 2, "mean")):
        try:
            call(batch)
        except runtime.EngineError as error:
            print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
engine.run(batch)
print("the parent goes on")
"""


@pytest.mark.parametrize("name", ENGINES)
def test_a_fork_is_told_and_does_not_hang(
    ready_artifact: Path, fresh_python: Callable[..., object], name: str
) -> None:
    result = fresh_python(FORK, ready_artifact, name)
    lines = result.stdout.splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 3, result
    for line in lines[:2]:
        assert line.startswith(f"engine '{name}' was loaded in process ")
        assert "Load it in each process" in line
    assert lines[2] == "the parent goes on"


@pytest.mark.parametrize("name", ENGINES)
def test_pickling_says_what_to_do(ready_artifact: Path, name: str) -> None:
    with (
        runtime.load(ready_artifact, name) as engine,
        pytest.raises(runtime.EngineError, match="Send the artifact's path, and load it there"),
    ):
        pickle.dumps(engine)


UNREADABLE = """
import os, sys
from pathlib import Path
import numpy, onnxruntime, torch, safetensors.torch, runtime, runtime.selftest
from runtime.engines.onnx import cpu as onnx
from runtime.engines.torch import aoti, torchscript
folder, names = Path(sys.argv[1]), ("onnx", "torchscript")
files = ("manifest.json", "weights.safetensors", "golden.npz", "model.onnx", "model.ts")
root = os.geteuid() == 0
for file in files:
    (folder / file).chmod(0)
    if root:
        os.seteuid(65534)
    for name in names:
        for check in (True, False):
            if file.startswith("model.") and file != {"onnx": "model.onnx"}.get(name, "model.ts"):
                continue
            try:
                runtime.load(folder, name, check_files=check, validate="golden" in file)
            except (runtime.ArtifactError, runtime.EngineError) as error:
                assert str(folder) in str(error) and chr(10) not in str(error), error
                print(file, name, check)
    if root:
        os.seteuid(0)
    (folder / file).chmod(0o444)
"""


def test_unreadable_files(ready_artifact: Path, fresh_python: Callable[..., object]) -> None:
    for folder in (ready_artifact, *ready_artifact.parents[:3]):
        folder.chmod(0o755)
    result = fresh_python(UNREADABLE, ready_artifact)
    lines = result.stdout.splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 3 * 2 * 2 + 2 * 2, result


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("file", ["model", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "folder"])
def test_damage_is_an_error_of_ours(
    ready_artifact: Path, name: str, file: str, damage: str
) -> None:
    file = {"onnx": "model.onnx", "torchscript": "model.ts"}[name] if file == "model" else file
    path = ready_artifact / file
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        contents = {"empty": b"", "cut": data[: len(data) // 3], "text": b"<html>not found</html>"}
        path.write_bytes(contents[damage])
    with pytest.raises(runtime.ArtifactError, match=file):
        runtime.load(ready_artifact, name, "cpu")
    with pytest.raises(runtime.EngineError, match=f"cannot load {ready_artifact}/") as error:
        runtime.load(ready_artifact, name, "cpu", check_files=False)
    if name == "torchscript":
        assert file in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "openvino"}, "engine must be auto, aoti-cuda, .* or onnx-int8, got 'openvino'"),
        ({"device": "tpu"}, "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"attention": "x"}, "memory-efficient or standard, got 'x'"),
    ],
)
def test_wrong_arguments(ready_artifact: Path, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(runtime.EngineError, match=message):
        runtime.load(ready_artifact, **arguments)  # type: ignore[arg-type]


class TestNames:
    """What a manifest names is refused before anything is opened."""

    @pytest.fixture(params=["file", "op_library", "golden"])
    def place(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def renamed(self, folder: Path, place: str, name: str, listed: bool) -> None:
        fields = json.loads((folder / "manifest.json").read_text())
        if place == "golden":
            fields["golden"]["file"] = name
        else:
            fields["engines"]["onnx"][place] = name
        if listed:
            fields["files"][name] = next(iter(fields["files"].values()))
        fields = upgraded(fields)
        manifests.write(msgspec.convert(fields, Manifest), folder)

    @pytest.mark.parametrize("check", [True, False])
    @pytest.mark.parametrize(
        "name",
        ["/etc/passwd", "../outside", "lib/../../outside", "", ".", "./model.onnx", "a//b",
         "C:\\\\x.dll", "..\\\\outside", "lib/.."],
    )  # fmt: skip
    def test_names_that_lead_out(
        self, ready_artifact: Path, place: str, name: str, check: bool
    ) -> None:
        (ready_artifact.parent / "outside").write_text("x")
        self.renamed(ready_artifact, place, name, listed=True)
        with pytest.raises(runtime.ArtifactError, match=r"is refused: file .* path"):
            runtime.load(ready_artifact, check_files=check)

    @pytest.mark.parametrize("check", [True, False])
    def test_files_that_are_not_listed(self, ready_artifact: Path, place: str, check: bool) -> None:
        (ready_artifact / "extra.so").write_text("x")
        self.renamed(ready_artifact, place, "extra.so", listed=False)
        with pytest.raises(runtime.ArtifactError, match="names 'extra.so', which is not among"):
            runtime.load(ready_artifact, "torchscript", check_files=check)

    @pytest.mark.parametrize("target", ["file", "folder", "itself"])
    def test_links_out_of_the_folder(self, ready_artifact: Path, target: str) -> None:
        outside = ready_artifact.parent / "outside"
        if target == "file":
            (ready_artifact / "model.onnx").rename(outside)
            (ready_artifact / "model.onnx").symlink_to("../outside")
        elif target == "folder":
            outside.mkdir()
            (ready_artifact / "model.onnx").rename(outside / "model.onnx")
            (ready_artifact / "lib").symlink_to(outside)
            self.renamed(ready_artifact, "file", "lib/model.onnx", listed=True)
        else:
            (ready_artifact / "model.onnx").unlink()
            (ready_artifact / "model.onnx").symlink_to("model.onnx")
        with pytest.raises(
            runtime.ArtifactError, match=r"link out|cannot be followed|cannot be re"
        ):
            runtime.load(ready_artifact, "onnx")

    def test_links_within_and_to_the_folder_are_fine(self, ready_artifact: Path) -> None:
        (ready_artifact / "data").mkdir()
        (ready_artifact / "model.onnx").rename(ready_artifact / "data" / "model.onnx")
        (ready_artifact / "model.onnx").symlink_to("data/model.onnx")
        link = ready_artifact.parent / "link"
        link.symlink_to(ready_artifact)
        assert manifests.read(link).files
        assert link.is_symlink()


def test_a_library_that_is_another_is_an_error(
    ready_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a warning, with attention at half the speed."""
    import numpy.linalg._umath_linalg as another

    # The first in a process stays, and this process may have built an artifact.
    monkeypatch.setattr(varlen_attention, "_native", None)

    (ready_artifact / "lib").mkdir()
    for name, file in (("onnx", "libesm2_ort.so"), ("torchscript", "libesm2_ops.so")):
        path = ready_artifact / "lib" / file
        path.write_bytes(Path(another.__file__).read_bytes())
        manifest = manifests.read(ready_artifact, check_files=False)
        entry = msgspec.structs.replace(manifest.engines[name], op_library=f"lib/{file}")
        rewrite(
            ready_artifact,
            engines={**manifest.engines, name: entry},
            files={**manifest.files, f"lib/{file}": FileEntry(1, "")},
        )
        with pytest.raises(runtime.EngineError, match=f"{file} is another library"):
            runtime.load(ready_artifact, name, "cpu", check_files=False)
