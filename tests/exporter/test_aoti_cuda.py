"""The engine ``aoti-cuda`` on a machine without a card: who is told what."""

from pathlib import Path

import msgspec
import pytest
import torch

import runtime
from exporter.build import build
from exporter.build_options import BuildOptions
from exporter.errors import ExportError
from exporter.formats.tracing import dynamic_shapes, exporting, tracing_pack
from exporter.model.packed_forward import PackedESM2
from exporter.model.precision import copy_on
from exporter.model.reference import Reference, WeightsSource
from runtime import manifest as manifests
from runtime.engine import Settings
from runtime.engines.torch import aoti, aoti_cuda
from runtime.errors import UnsupportedError
from runtime.manifest_schema import EngineEntry

pytestmark = pytest.mark.slow

without_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="describes a machine without GPU"
)
ENTRY = EngineEntry("model.cuda.pt2", "", {}, compute_capability="9.0")


@without_gpu
def test_building_needs_a_gpu(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = WeightsSource("checkpoint", str(tiny_checkpoint))
    options = BuildOptions(source, ("torchscript", "aoti-cuda"), out=tmp_path / "x")
    with pytest.raises(ExportError, match=r"PyTorch .* sees none\. Build it where it will run"):
        build(options, lambda line: None)
    assert not (tmp_path / "x").exists()


@without_gpu
def test_loading_needs_a_gpu(tiny_artifact: Path, tmp_path: Path) -> None:
    manifest = manifests.read(tiny_artifact)
    engines = {**manifest.engines, "aoti-cuda": ENTRY}
    files = {**manifest.files, ENTRY.file: manifest.files["model.ts"]}
    manifests.write(msgspec.structs.replace(manifest, engines=engines, files=files), tmp_path)
    with pytest.raises(
        UnsupportedError, match="on cuda: PyTorch .* sees no GPU.*; on cpu: it runs on CUDA"
    ):
        runtime.load(tmp_path, "aoti-cuda", check_files=False)


def test_another_card_is_refused_by_both_names(
    ready_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifests.read(ready_artifact)
    manifest = msgspec.structs.replace(manifest, engines={"aoti-cuda": ENTRY})

    def reasons(device: str) -> list[str]:
        return aoti_cuda.unsupported_reasons(manifest, device, Settings())

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert reasons("cuda") == [
        "it was compiled for compute capability 9.0, this GPU (NVIDIA A100) has 8.0. "
        "Export again here, or take engine 'torchscript'"
    ]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert reasons("cuda") == []
    assert reasons("cpu") == ["it runs on CUDA alone"]


def test_no_forward_waits_for_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """AOTInductor's runner asks after the last forward unless it is single-threaded."""
    opened: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        torch._C._aoti, "AOTIModelContainerRunnerCuda", lambda *given: opened.append(given), False
    )
    aoti._open_runner(Path("folder/model.so"), "cuda")
    assert opened == [("folder/model.so", 1, "cuda", "folder", True)]


def test_a_copy_on_another_device_leaves_the_original(reference: Reference) -> None:
    packed = PackedESM2(reference.model, (6,))
    copy = copy_on(packed, "meta")
    assert {x.device.type for x in [*copy.parameters(), *copy.buffers()]} == {"meta"}
    assert {x.device.type for x in [*packed.parameters(), *packed.buffers()]} == {"cpu"}


def test_the_forward_exports_where_tensors_have_no_values(reference: Reference) -> None:
    """As on a card: what export would read of a tensor, the engine would wait for."""
    packed = copy_on(PackedESM2(reference.model, (6,), "mean"), "meta")
    input_ids, cu_seqlens, max_seqlen = tracing_pack()
    pack = input_ids.to("meta"), cu_seqlens.to("meta"), max_seqlen
    with exporting():
        program = torch.export.export(packed, pack, dynamic_shapes=dynamic_shapes(), strict=False)
    ops = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert ops.count("esm2.varlen_attention.default") == 6
    # Of the host's max_seqlen, and of nothing else.
    assert [op for op in ops if ".item" in op or "_local_scalar_dense" in op] == [
        "aten.item.default"
    ]
