"""The engine ``onnx-cuda`` on a machine without a card: all of it but the attention kernel."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from esm.model.esm2 import ESM2
from hypothesis import given, settings
from hypothesis import strategies as st

import runtime
from exporter.build import build
from exporter.build_options import BuildOptions
from exporter.errors import ExportError
from exporter.formats.onnx import cuda as onnx_cuda_export
from exporter.formats.onnx.attention import DOMAIN, ONNX_DTYPES, OPSET, PACKED_OP_TYPE
from exporter.formats.onnx.packed_attention import (
    token_offset_function,
    without_vendor_ops,
)
from exporter.formats.onnx.stand_in import stand_in
from exporter.formats.onnx.vendor_ops import VENDOR
from exporter.model.packed_forward import PackedESM2
from exporter.model.precision import cast_copy
from exporter.model.reference import WeightsSource, load_reference
from exporter.parity.rules.observed import token_offset_of
from exporter.parity.rules.verdict import EngineVerdict
from exporter.parity.truth.cache import Cache
from exporter.parity.verify import verify
from exporter.publish import writable_copy
from exporter.weights import shared as shared_weights
from runtime.engine import EngineSpec, Settings
from runtime.engines.base import spec_of
from runtime.engines.onnx import cuda as onnx_cuda
from runtime.engines.onnx.cpu import OnnxEngine
from runtime.engines.onnx.cuda import OnnxCudaEngine
from runtime.errors import EngineError, InputError, UnsupportedError
from runtime.manifest import read
from runtime.packing import PackedBatch
from runtime.pooling import Pool, pool
from tests.conftest import MadeOnce, built

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="describes an onnxruntime for CPUs",
)


@pytest.fixture(scope="module")
def cuda_artifact(tiny_checkpoint: Path, made_once: MadeOnce, cache: Cache) -> Path:
    """With an engine that is measured here, as every artifact must have."""
    source = WeightsSource("checkpoint", str(tiny_checkpoint))
    return made_once("cuda", built(source, ("torchscript", "onnx-cuda"), (0, 1, 2), cache))


@pytest.fixture
def graph(cuda_artifact: Path) -> onnx.ModelProto:
    return onnx.load(cuda_artifact / "model.ort-cuda.onnx", load_external_data=False)


class TestGraph:
    def test_every_attention_is_packed_and_reads_one_token_offset(
        self, graph: onnx.ModelProto
    ) -> None:
        packed = [node for node in graph.graph.node if node.op_type == PACKED_OP_TYPE]
        assert len(packed) == 2
        assert {tuple(node.input[3:]) for node in packed} == {("", "token_offset", "cu_seqlens")}
        kinds = [node.op_type for node in graph.graph.node]
        assert kinds.count("TokenOffset") == 1
        assert not {"VarlenAttention", "VarlenRotaryAttention", "Attention", "Loop"} & set(kinds)

    def test_scale_and_heads(self, graph: onnx.ModelProto) -> None:
        for node in graph.graph.node:
            if node.op_type == PACKED_OP_TYPE:
                attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
                assert attributes == {"num_heads": 4, "scale": pytest.approx(12**-0.5)}

    def test_shapes_are_inferred_through_the_vendors_op(self, graph: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True).graph
        shapes = {value.name: value.type.tensor_type.shape for value in inferred.value_info}
        after = [n.output[0] for n in inferred.node if n.op_type in ("Gemm", PACKED_OP_TYPE)]
        known = [shapes[name] for name in after if name in shapes]
        assert len(known) == len(after) - 1  # the logits are an output
        assert {shape.dim[0].dim_param for shape in known} == {"T"}
        assert all(shape.dim[1].dim_value for shape in known)

    def test_rotary_reads_tables_of_one_head(self, graph: onnx.ModelProto) -> None:
        (pooling,) = (node for node in graph.graph.node if node.op_type == "Tile")
        reaches = {pooling.output[0]}
        for node in graph.graph.node:
            if reaches & set(node.input):
                reaches |= set(node.output)
        assert "pooled" in reaches
        assert "logits" not in reaches

    def test_without_the_kernel_loading_names_the_op(self, cuda_artifact: Path) -> None:
        with pytest.raises(Exception, match=PACKED_OP_TYPE) as error:
            onnxruntime.InferenceSession(
                cuda_artifact / "model.ort-cuda.onnx", providers=["CPUExecutionProvider"]
            )
        assert type(error.value).__name__ == "NotImplemented"

    def test_bfloat16_is_refused(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        source = WeightsSource("checkpoint", str(tiny_checkpoint))
        options = BuildOptions(source, ("onnx-cuda",), dtype="bfloat16", out=tmp_path / "x")
        with pytest.raises(ExportError, match=r"knows no bfloat16.*Take --dtype float16"):
            build(options, lambda line: None)


@dataclass(frozen=True)
class Exported:
    """A model of head dim 64, as 650M's, as PyTorch's exporter leaves it."""

    packed: PackedESM2
    folder: Path
    graph: onnx.ModelProto

    def lowered(
        self, monkeypatch: pytest.MonkeyPatch, change: Callable[[ir.Model], None] | None = None
    ) -> onnx.ModelProto:
        """For CUDA, after ``change``."""
        model = ir.from_proto(self.graph)
        if change:
            change(model)
        with monkeypatch.context() as patch:
            patch.setattr(onnx_cuda_export.onnx_cpu, "export_graph", lambda packed: model)
            return onnx_cuda_export.lower(self.packed, self.folder)


@pytest.fixture(scope="module", params=[torch.float32, torch.float16], ids=str)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(0)
    model = ESM2(num_layers=2, embed_dim=128, attention_heads=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # or the graph would share those that are alike
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    packed = cast_copy(PackedESM2(model, (1, 2), "mean").eval(), request.param)
    folder = tmp_path_factory.mktemp("wide")
    shared_weights.write(packed, folder)
    graph = onnx_cuda_export.onnx_cpu.export_graph(packed)
    return Exported(packed, folder, ir.to_proto(graph))


def vendor_ops(graph: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in graph.graph.node if node.domain == VENDOR]


class TestFusedKernels:
    """ONNX Runtime's, each with its standard ops beside it."""

    def test_each_layer_is_fused(self, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
        model = exported.lowered(monkeypatch)
        kinds = vendor_ops(model)
        assert kinds.count("RotaryEmbedding") == kinds.count("SkipLayerNormalization") == 4
        left = [node.op_type for node in model.graph.node if not node.domain]
        assert left.count("LayerNormalization") == 2  # the first, and the LM head's
        assert left.count("Split") == 0

    def test_they_compute_what_their_standard_ops_do(
        self, exported: Exported, batch: PackedBatch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fused = exported.lowered(monkeypatch)
        monkeypatch.setattr(onnx_cuda_export, "fuse", lambda model, *heads: model)
        plain = exported.lowered(monkeypatch)
        assert set(vendor_ops(plain)) == {PACKED_OP_TYPE}
        near = 1e-5 if exported.packed.embed_tokens.weight.dtype == torch.float32 else 3e-3
        for got, expected in zip(
            *(self.outputs(exported, model, batch) for model in (fused, plain)), strict=True
        ):
            distance = np.linalg.norm((got - expected).astype(np.float64))
            assert distance <= near * np.linalg.norm(expected.astype(np.float64))

    def outputs(
        self, exported: Exported, model: onnx.ModelProto, batch: PackedBatch
    ) -> list[np.ndarray[Any, Any]]:
        dtype = str(exported.packed.embed_tokens.weight.dtype).removeprefix("torch.")
        without_vendor_ops(model, ONNX_DTYPES[dtype], 2, 64)
        path = exported.folder / "model.onnx"
        onnx.save(model, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        feeds = {
            "input_ids": batch.input_ids,
            "cu_seqlens": batch.cu_seqlens,
            "max_seqlen": np.array(batch.max_seqlen),
        }
        return list(session.run(None, feeds))

    def test_small_heads_are_rotated_by_standard_ops(self, graph: onnx.ModelProto) -> None:
        kinds = vendor_ops(graph)
        assert "RotaryEmbedding" not in kinds
        assert kinds.count("SkipLayerNormalization") == 4

    def test_another_layer_norm_is_left_alone(
        self, exported: Exported, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What does not do just what the kernel does must reach the gate as it is."""

        def in_half(model: ir.Model) -> None:
            for node in model.graph:
                if node.op_type == "LayerNormalization":
                    node.attributes.add(ir.AttrInt64("stash_type", 10))

        assert "SkipLayerNormalization" not in vendor_ops(exported.lowered(monkeypatch, in_half))

    def test_rotary_of_other_tables_is_left_alone(
        self, exported: Exported, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def not_negated(model: ir.Model) -> None:
            for node in model.graph:
                if node.op_type == "Neg":
                    node.outputs[0].replace_all_uses_with(node.inputs[0])

        assert "RotaryEmbedding" not in vendor_ops(exported.lowered(monkeypatch, not_negated))


@pytest.fixture(scope="module")
def token_offset_session() -> onnxruntime.InferenceSession:
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {OPSET}, "{DOMAIN}": 1]>\n'
        "g (int32[B] cu_seqlens, int64 max_seqlen) => (int32[N, L] token_offset) {\n"
        f"  token_offset = {DOMAIN}.TokenOffset(cu_seqlens, max_seqlen)\n}}"
    )
    model.functions.append(token_offset_function())
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


class TestTokenOffset:
    def test_an_example(self) -> None:
        """As ONNX Runtime's documentation lays it out: lengths 3 and 1."""
        assert token_offset_of(np.array([0, 3, 4], np.int32)).tolist() == [[0, 1, 2], [3, 4, 5]]
        assert token_offset_of(np.array([0, 1, 4], np.int32)).tolist() == [[0, 3, 4], [5, 1, 2]]

    @settings(deadline=None, max_examples=60)
    @given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30))
    def test_the_subgraph_computes_its_definition(
        self, token_offset_session: onnxruntime.InferenceSession, lengths: list[int]
    ) -> None:
        cu_seqlens = np.cumsum([0, *lengths]).astype(np.int32)
        feeds = {"cu_seqlens": cu_seqlens, "max_seqlen": np.array(max(lengths))}
        (offsets,) = token_offset_session.run(None, feeds)
        assert offsets.dtype == np.int32
        assert np.array_equal(offsets, token_offset_of(cu_seqlens))


def swap_queries_and_keys(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == PACKED_OP_TYPE:
            node.input[0], node.input[1] = node.input[1], node.input[0]


def scale_off_by_a_percent(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == PACKED_OP_TYPE and attribute.name == "scale":
                attribute.f *= 1.01


def padding_one_place_too_far(model: onnx.ModelProto) -> None:
    (function,) = (f for f in model.functions if f.name == "TokenOffset")
    (node,) = (n for n in function.node if n.output[0] == "padding_places")
    node.input[1] = "columns"


def values_of_the_first_layer_everywhere(model: onnx.ModelProto) -> None:
    first, second = (node for node in model.graph.node if node.op_type == PACKED_OP_TYPE)
    second.input[2] = first.input[2]


def an_op_that_nobody_knows(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Gelu").op_type = "Gelo"


def pooling_without_division(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Div").op_type = "Max"


class TestGate:
    def verdict(self, folder: Path, checkpoint: Path, cache: Cache) -> EngineVerdict:
        reference = load_reference(WeightsSource("checkpoint", str(checkpoint)))
        manifest = read(folder, check_files=False)
        report = verify(folder, manifest, reference, engines=["onnx-cuda"], cache=cache)
        assert not report.passed  # nothing was measured
        return report.engines[0]

    def test_a_right_graph_is_not_measured_and_says_how_far_it_got(
        self, cuda_artifact: Path, tiny_checkpoint: Path, cache: Cache
    ) -> None:
        verdict = self.verdict(cuda_artifact, tiny_checkpoint, cache)
        assert verdict.status == "not measured"
        assert "needs CUDAExecutionProvider" in verdict.reason
        assert "passed on the CPU with attention in standard ops" in verdict.reason

    def test_of_an_artifact_that_can_only_be_read(
        self, cuda_artifact: Path, tiny_checkpoint: Path, cache: Cache, read_only: Any
    ) -> None:
        """Its stand-in was made beside it."""
        folder = read_only(cuda_artifact)
        assert "passed on the CPU" in self.verdict(folder, tiny_checkpoint, cache).reason

    @pytest.mark.parametrize(
        ("fault", "named"),
        [
            (swap_queries_and_keys, "relative L2"),
            (scale_off_by_a_percent, "relative L2"),
            (values_of_the_first_layer_everywhere, "relative L2"),
            (padding_one_place_too_far, "token_offset"),
            (an_op_that_nobody_knows, "Gelo"),
            (pooling_without_division, "graph for pooling"),
        ],
    )
    def test_a_wrong_graph_fails(
        self, cuda_artifact: Path, tiny_checkpoint: Path, cache: Cache, tmp_path: Path,
        fault: Callable[[onnx.ModelProto], None], named: str,
    ) -> None:  # fmt: skip
        folder = tmp_path / "faulty"
        writable_copy(cuda_artifact, folder)
        file = "pooling" if fault.__name__.startswith("pooling") else "model"
        path = folder / f"{file}.ort-cuda.onnx"
        model = onnx.load(path, load_external_data=False)
        fault(model)
        onnx.save(model, path)
        verdict = self.verdict(folder, tiny_checkpoint, cache)
        assert verdict.status == "failed"
        assert verdict.engine == "onnx-cuda"
        assert named in verdict.reason
        assert list(tmp_path.iterdir()) == [folder]  # the stand-in is gone


class TestEngine:
    def test_refused_without_cuda(self, cuda_artifact: Path) -> None:
        with pytest.raises(UnsupportedError, match=r"needs CUDAExecutionProvider.*onnx-gpu"):
            runtime.load(cuda_artifact, "onnx-cuda")
        with pytest.raises(UnsupportedError, match="runs on CUDA alone"):
            runtime.load(cuda_artifact, "onnx-cuda", device="cpu")

    def test_refused_with_an_onnxruntime_that_copies_in_every_layer(
        self, cuda_artifact: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import onnxruntime

        from runtime.engines.onnx import cpu

        preloaded: list[int] = []
        monkeypatch.setattr(cpu, "_preload_cuda", lambda: preloaded.append(1))
        both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
        monkeypatch.setattr(onnxruntime, "__version__", "1.26.1")
        with pytest.raises(
            UnsupportedError, match=r"onnxruntime-gpu 1\.26\.1 leaves.*1\.27"
        ) as old:
            runtime.load(cuda_artifact, "onnx-cuda")
        assert "\n" not in str(old.value)
        monkeypatch.setattr(onnxruntime, "__version__", "1.27.0")
        assert not preloaded
        with pytest.raises(EngineError, match="'CUDAExecutionProvider' is not in available"):
            runtime.load(cuda_artifact, "onnx-cuda")
        assert preloaded

    def test_cudas_libraries_are_looked_for_where_pip_installs_them(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import onnxruntime

        from runtime.engines.onnx import cpu

        asked = []
        monkeypatch.setattr(
            onnxruntime, "preload_dlls", lambda: asked.append(sys.stdout.write("no"))
        )
        cpu._preload_cuda()
        assert not asked  # PyTorch has loaded its own
        monkeypatch.delitem(sys.modules, "torch")
        cpu._preload_cuda()
        assert asked
        assert capsys.readouterr().out == ""

    def test_auto_takes_another(self, cuda_artifact: Path) -> None:
        with runtime.load(cuda_artifact) as engine:
            assert engine.spec.format == "torchscript"

    @pytest.mark.parametrize(
        ("attention", "dtype", "kernel"),
        [
            ("auto", "float16", "onnxruntime flash"),
            ("auto", "float32", "onnxruntime memory-efficient"),
            ("flash", "float16", "onnxruntime flash"),
            ("memory-efficient", "float16", "onnxruntime memory-efficient"),
            ("standard", "float16", "onnxruntime standard"),
        ],
    )
    def test_attention(
        self, cuda_artifact: Path, attention: runtime.engine.Attention, dtype: str, kernel: str
    ) -> None:
        manifest = msgspec.structs.replace(read(cuda_artifact), dtype=dtype)
        assert onnx_cuda._attention(manifest, attention)[0].startswith(kernel)

    @pytest.mark.parametrize(
        ("attention", "why"),
        [("flash", "flash: needs float16, got float32"), ("flash-attn", "has its own kernels")],
    )
    def test_attention_that_cannot_be_had(
        self, cuda_artifact: Path, attention: runtime.engine.Attention, why: str
    ) -> None:
        kernel, reason = onnx_cuda._attention(read(cuda_artifact), attention)
        assert not kernel
        assert why in reason

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
        """Options of the CUDA provider, of each session that was opened."""
        found: list[dict[str, str]] = []
        monkeypatch.setattr(
            onnx_cuda.onnx, "open_session", lambda *arguments: found.append(arguments[2])
        )
        return found

    @pytest.mark.parametrize("tf32", [False, True])
    def test_tf32_is_off_unless_asked_for(
        self, cuda_artifact: Path, asked: list[dict[str, str]], tf32: bool
    ) -> None:
        manifest = read(cuda_artifact)
        onnx_cuda.load(cuda_artifact, manifest, "cuda", Settings(tf32=tf32))
        wanted = {
            "use_tf32": "1" if tf32 else "0",
            "sdpa_kernel": "19",
            "enable_skip_layer_norm_strict_mode": "1",
        }
        assert asked == [wanted]

    @pytest.mark.parametrize("engine", [onnx_cuda, onnx_cuda.onnx])
    def test_no_plan_of_memory_is_kept_for_each_size_of_pack(
        self, cuda_artifact: Path, monkeypatch: pytest.MonkeyPatch, engine: Any
    ) -> None:
        given: list[Any] = []
        monkeypatch.setattr(
            onnx_cuda.onnx, "open_session", lambda *arguments: given.append(arguments[1])
        )
        manifest = read(cuda_artifact)
        manifest.engines["onnx"] = manifest.engines["onnx-cuda"]
        engine.load(cuda_artifact, manifest, "cuda", Settings())
        onnx_cuda.onnx.load(cuda_artifact, manifest, "cpu", Settings())
        assert [options.enable_mem_pattern for options in given] == [False, True]

    @pytest.mark.parametrize("engine", [onnx_cuda, onnx_cuda.onnx])
    def test_another_card(
        self, cuda_artifact: Path, asked: list[dict[str, str]], engine: Any
    ) -> None:
        manifest = read(cuda_artifact)
        manifest.engines["onnx"] = manifest.engines["onnx-cuda"]
        loaded = engine.load(cuda_artifact, manifest, "cuda:1", Settings())
        assert [options["device_id"] for options in asked] == ["1"]
        assert loaded.spec.device == "cuda:1"

    @pytest.mark.parametrize("pools", [True, False], ids=["on the card", "as artifacts of before"])
    def test_bound_tensors_give_what_a_plain_run_gives(
        self, on_cpu: "OnCpu", batch: PackedBatch, pools: bool
    ) -> None:
        """The engine itself, on the CPU with the stand-in graph."""
        opened: list[Any] = []

        def open_pooling() -> onnxruntime.InferenceSession:
            opened.append(on_cpu.pooling())
            return opened[0]

        spec, names = on_cpu.spec, on_cpu.output_names
        with (
            OnnxCudaEngine(on_cpu.session, spec, names, open_pooling if pools else None) as bound,
            OnnxEngine(on_cpu.session, spec, names, 1) as plain,
        ):
            for name, array in plain.run(batch).tensors.items():
                assert np.array_equal(bound.run(batch).tensors[name], array), name
            assert not opened
            for layer in spec.layers:
                for how in get_args(Pool):
                    vectors = bound.embed(batch, layer, how)
                    assert np.array_equal(vectors, plain.embed(batch, layer, how))
            assert len(opened) == pools
            wanted = [(layer, how) for layer in spec.layers for how in get_args(Pool)]
            for one, other in zip(
                bound.embed_several(batch, wanted), plain.embed_several(batch, wanted), strict=True
            ):
                assert np.array_equal(one, other)
            with pytest.raises(InputError, match="pool must be"):
                bound.embed(batch, 1, "median")  # type: ignore[arg-type]

    @pytest.mark.parametrize("pools", [True, False], ids=["on the card", "on the host"])
    def test_a_pack_is_pooled_beside_the_next_ones_run(
        self, on_cpu: "OnCpu", batch: PackedBatch, monkeypatch: pytest.MonkeyPatch, pools: bool
    ) -> None:
        """And runs have the card one at a time."""
        running: list[int] = []
        most: list[int] = []
        both_pool = threading.Barrier(2)

        def run(binding: Any) -> None:
            running.append(1)
            most.append(len(running))
            time.sleep(0.05)
            on_cpu.session.run_with_iobinding(binding)
            running.pop()

        def pool_when_both_have_run(*arguments: Any) -> Any:
            both_pool.wait(20)
            return pool(*arguments)

        def run_pooling(binding: Any) -> None:
            both_pool.wait(20)
            pooling.run_with_iobinding(binding)

        pooling = on_cpu.pooling()
        monkeypatch.setattr("runtime.engines.base.pool", pool_when_both_have_run)
        engine = OnnxCudaEngine(
            Watched(on_cpu.session, run), on_cpu.spec, on_cpu.output_names,
            partial(Watched, pooling, run_pooling) if pools else None,
        )  # fmt: skip
        with engine, ThreadPoolExecutor(2) as threads:
            first, second = threads.map(lambda how: engine.embed(batch, 1, how), ["cls", "cls"])
        assert np.array_equal(first, second)
        assert most == [1, 1]


@dataclass
class Watched:
    """A session whose runs go through ``run_with_iobinding``."""

    session: onnxruntime.InferenceSession
    run_with_iobinding: Callable[[Any], None]

    def io_binding(self) -> Any:
        return self.session.io_binding()


@dataclass
class OnCpu:
    """What an ``OnnxCudaEngine`` takes, with sessions on the CPU."""

    session: onnxruntime.InferenceSession
    spec: EngineSpec
    output_names: list[str]
    pooling: Callable[[], onnxruntime.InferenceSession]


@pytest.fixture(scope="module")
def on_cpu(cuda_artifact: Path) -> Iterator[OnCpu]:
    with stand_in(cuda_artifact, read(cuda_artifact)) as twin:
        described = twin.manifest
        entry = described.engines[twin.engine]
        assert entry.pooling
        yield OnCpu(
            session_of(twin.folder / entry.file),
            spec_of(described, "onnx", device="cpu", library="onnxruntime", attention="function"),
            [output.name for output in described.signature.outputs],
            partial(session_of, twin.folder / entry.pooling),
        )


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
