"""The engine ``tensorrt`` without a card: built by TensorRT-RTX, judged by its graph."""

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import pytest
import torch

import runtime
from exporter.build import build
from exporter.build_options import BuildOptions
from exporter.errors import ExportError
from exporter.formats.tensorrt import export as tensorrt
from exporter.formats.tensorrt import plan as tensorrt_plan
from exporter.formats.tensorrt.attention import RUNGS, RefusedError
from exporter.formats.tensorrt.names import FILE_NAME, tensor_name
from exporter.formats.tensorrt.options import PlanOptions, profiles_of
from exporter.formats.tensorrt.plan import PlanRecipe, build_plan, configured
from exporter.model.reference import WeightsSource, load_reference
from exporter.parity.rules.observed import grid_of
from exporter.parity.rules.verdict import EngineVerdict
from exporter.parity.truth.cache import Cache
from exporter.parity.verify import Proof, ProofOptions, verify
from exporter.publish import writable_copy
from exporter.weights import shared as shared_weights
from runtime.engines.tensorrt.engine import deserialize
from runtime.engines.tensorrt.library import collecting_logger, import_library
from runtime.errors import ArtifactError, EngineError, UnsupportedError
from runtime.manifest import read
from runtime.manifest_schema import EngineEntry, Profile
from tests.conftest import wide_model

pytestmark = pytest.mark.slow

trt = import_library("tensorrt_rtx")
CARDS = ("8.0", "8.9", "12.0")

without_card = pytest.mark.skipif(
    torch.cuda.is_available(), reason="describes a machine without a card"
)


@pytest.fixture(scope="module", params=["float32", "float16"])
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, EngineEntry]:
    """For three kinds of card: its dtype, folder and entry of the manifest."""
    folder = tmp_path_factory.mktemp(request.param)
    packed = wide_model(request.param)
    shared_weights.write(packed, folder)
    entry = tensorrt.export(packed, folder, PlanOptions(CARDS, max_seqlen=1_024))
    return request.param, folder, entry


def described(graph: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Inputs and outputs as TensorRT's parser reads them: dtype and shape, -1 where it varies."""
    logger = collecting_logger(trt)
    builder = trt.Builder(logger)
    network, _alive = tensorrt_plan._parsed(trt, builder, logger, graph, "masked")
    tensors = [network.get_input(place) for place in range(network.num_inputs)]
    tensors += [network.get_output(place) for place in range(network.num_outputs)]
    return {tensor.name: (tensor.dtype.name, tuple(tensor.shape)) for tensor in tensors}


class TestPlans:
    def test_one_for_each_card_with_the_weights_inside(
        self, built: tuple[str, Path, EngineEntry]
    ) -> None:
        _, folder, entry = built
        assert [plan.compute_capability for plan in entry.plans] == list(CARDS)
        assert len({(folder / plan.file).read_bytes()[:4096] for plan in entry.plans}) == 3
        weights = (folder / "weights.safetensors").stat().st_size
        for plan in entry.plans:
            sm = plan.compute_capability.replace(".", "")
            assert plan.file == f"tensorrt/sm{sm}-tensorrt-rtx-{trt.__version__}.plan"
            assert not plan.refit
            assert (folder / plan.file).stat().st_size > weights

    def test_the_ladder_and_the_builders_own_sentences(
        self, built: tuple[str, Path, EngineEntry]
    ) -> None:
        _, _, entry = built
        for plan in entry.plans:
            assert plan.attention == "padded"
            assert list(plan.refused) == ["packed"]
            assert "no fused kernel is available on this target" in plan.refused["packed"]
            assert plan.profiles == profiles_of("padded", 16_384, 1_024, 20)
        assert entry.lowering == RUNGS["padded"]

    def test_inputs_and_outputs(self, built: tuple[str, Path, EngineEntry]) -> None:
        dtype, folder, entry = built
        number = {"float32": "FLOAT", "float16": "HALF"}[dtype]
        assert described(folder / entry.file) == {
            "input_ids": ("INT64", (-1,)),
            "cu_seqlens": ("INT32", (-1,)),
            "max_seqlen": ("INT64", ()),
            "logits": (number, (-1, 33)),
            "representations.2": (number, (-1, 320)),
        }

    def test_deserialized(self, built: tuple[str, Path, EngineEntry]) -> None:
        dtype, folder, entry = built
        logger = collecting_logger(trt)
        try:
            engine = deserialize(trt, logger, folder / entry.plans[0].file)
        except EngineError as error:
            assert "CUDA driver version is insufficient" in str(error)
            pytest.skip(f"TensorRT reads a plan only where there is an NVIDIA driver: {error}")
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        assert {name: engine.get_tensor_dtype(name).name for name in names} == {
            name: kind for name, (kind, _) in described(folder / entry.file).items()
        }
        for place, profile in enumerate(entry.plans[0].profiles):
            assert engine.get_tensor_profile_shape("input_ids", place)[2] == (profile.max_tokens,)
            bounds = engine.get_tensor_profile_shape("cu_seqlens", place)[2]
            assert bounds == (profile.max_proteins + 1,)
            longest = engine.get_tensor_profile_values(place, "max_seqlen")[2]
            assert list(longest) == [profile.max_seqlen]

    @without_card
    def test_without_a_driver_the_library_says_so(
        self, built: tuple[str, Path, EngineEntry]
    ) -> None:
        _, folder, entry = built
        path = folder / entry.plans[0].file
        with pytest.raises(EngineError, match=r"cannot read .*CUDA driver version is insufficient"):
            deserialize(trt, collecting_logger(trt), path)

    @without_card
    def test_a_plan_without_weights_wants_a_card(
        self, built: tuple[str, Path, EngineEntry]
    ) -> None:
        _, folder, entry = built
        with pytest.raises(RefusedError, match="CUDA_SUCCESS"):
            build_plan(trt, recipe_of(folder / entry.file, refit=True))


def recipe_of(graph: Path, refit: bool) -> PlanRecipe:
    return PlanRecipe(
        graph=graph,
        num_layers=2,
        compute_capability="8.9",
        rung="padded",
        profiles=[Profile(512, 8, 128)],
        refit=refit,
        timing_cache=None,
    )


class TestConfig:
    """What the builder is told, read back from its own object."""

    @pytest.mark.parametrize("refit", [True, False])
    def test_weights_are_left_out_for_the_very_same_ones(self, refit: bool) -> None:
        builder = trt.Builder(collecting_logger(trt))
        config = configured(trt, builder, recipe_of(Path("x"), refit))
        flags = trt.BuilderFlag
        assert config.get_flag(flags.REFIT_IDENTICAL) is refit
        assert config.get_flag(flags.STRIP_PLAN) is refit
        # These cost speed, and in TensorRT 11.3 REFIT may lose a bias.
        assert not config.get_flag(flags.REFIT_INDIVIDUAL)
        assert not config.get_flag(flags.REFIT)
        assert not config.get_flag(flags.TF32)

    def test_tensorrt_chooses_among_all_kernels_of_its_card(self) -> None:
        """Its API is TensorRT-RTX's without cards to choose from; no level limits its kernels."""
        left_out = {"ComputeCapability", "HardwareCompatibilityLevel"}
        names = {name: getattr(trt, name) for name in set(dir(trt)) - left_out}
        builder = trt.Builder(collecting_logger(trt))
        config = configured(SimpleNamespace(**names), builder, recipe_of(Path("x"), refit=False))
        assert config.num_optimization_profiles == 1


def read_one_place_before(model: onnx.ModelProto, output: str) -> None:
    (node,) = (n for n in model.graph.node if output in n.output)
    assert node.op_type == "Gather"
    planted = [
        onnx.helper.make_node("Sub", [node.input[1], "planted_one"], ["planted_before"]),
        onnx.helper.make_node("Max", ["planted_before", "planted_zero"], ["planted_place"]),
    ]
    for name, value in (("planted_one", 1), ("planted_zero", 0)):
        tensor = onnx.numpy_helper.from_array(np.array(value, np.int64), name)
        model.graph.initializer.append(tensor)
    place = list(model.graph.node).index(node)
    for new in reversed(planted):
        model.graph.node.insert(place, new)
    node.input[1] = "planted_place"


def keys_of_the_token_before(model: onnx.ModelProto) -> None:
    read_one_place_before(model, gathered(model, "k"))


def cells_of_the_token_before(model: onnx.ModelProto) -> None:
    read_one_place_before(model, tensor_name(1, "out"))


def gathered(model: onnx.ModelProto, role: str) -> str:
    (node,) = (n for n in model.graph.node if n.input and n.input[0] == tensor_name(0, role))
    return str(node.output[0])


def padding_attends(model: onnx.ModelProto) -> None:
    (less,) = (n for n in model.graph.node if n.op_type == "Less")
    less.op_type = "LessOrEqual"


def no_scale(model: onnx.ModelProto) -> None:
    (node,) = (n for n in model.graph.node if tensor_name(0, "q") in n.output)
    node.op_type = "Identity"
    del node.input[1:]


class TestGate:
    def verdict(self, folder: Path, checkpoint: Path, cache: Cache) -> EngineVerdict:
        reference = load_reference(WeightsSource("checkpoint", str(checkpoint)))
        manifest = read(folder, check_files=False)
        return verify(folder, manifest, reference, engines=["tensorrt"], cache=cache).engines[0]

    @without_card
    def test_the_graph_passes_here_and_is_not_called_measured(
        self, trt_artifact: Path, tiny_checkpoint: Path, cache: Cache
    ) -> None:
        verdict = self.verdict(trt_artifact, tiny_checkpoint, cache)
        assert verdict.status == "not measured"
        assert "it needs an NVIDIA GPU and its driver" in verdict.reason
        assert "passed on the CPU with attention in standard ops" in verdict.reason

    @pytest.mark.parametrize(
        ("fault", "named"),
        [
            (keys_of_the_token_before, "relative L2"),
            (cells_of_the_token_before, "cells"),
            (padding_attends, "relative L2"),
            (no_scale, "relative L2"),
        ],
    )
    def test_a_wrong_graph_fails(
        self, trt_artifact: Path, tiny_checkpoint: Path, cache: Cache, tmp_path: Path,
        fault: Callable[[onnx.ModelProto], None], named: str,
    ) -> None:  # fmt: skip
        folder = tmp_path / "faulty"
        writable_copy(trt_artifact, folder)
        path = folder / FILE_NAME
        model = onnx.load(path, load_external_data=False)
        fault(model)
        onnx.save(model, path)
        verdict = self.verdict(folder, tiny_checkpoint, cache)
        assert verdict.status == "failed"
        assert verdict.engine == "tensorrt"
        assert named in verdict.reason

    @without_card
    def test_bfloat16_is_not_measured_and_says_why_twice(
        self, trt_artifact: Path, tiny_checkpoint: Path, cache: Cache
    ) -> None:
        """ONNX Runtime has no bfloat16 on CPUs, so that the graph cannot run here either."""
        reference = load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))
        manifest = msgspec.structs.replace(read(trt_artifact), dtype="bfloat16")
        report = verify(trt_artifact, manifest, reference, engines=["tensorrt"], cache=cache)
        (verdict,) = report.engines
        assert verdict.status == "not measured"
        assert "needs an NVIDIA GPU" in verdict.reason
        assert "Nor can its graph run here" in verdict.reason
        assert "no bfloat16" in verdict.reason

    def test_faults_are_not_planted_in_plans(
        self, trt_artifact: Path, tiny_checkpoint: Path, cache: Cache
    ) -> None:
        reference = load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))
        proof = Proof(lambda: reference, ProofOptions(1, ["tensorrt"]))
        with pytest.raises(ExportError, match="faults can be planted in onnx, got tensorrt"):
            verify(trt_artifact, read(trt_artifact), reference, cache=cache, prove=proof)

    def test_the_grid_by_its_definition(self) -> None:
        sources, cells = grid_of(np.array([0, 3, 4], np.int32))
        assert sources.tolist() == [[0, 1, 2], [3, 3, 3]]
        assert cells.tolist() == [0, 1, 2, 3]


class TestRefusals:
    @without_card
    def test_no_card(self, trt_artifact: Path) -> None:
        with pytest.raises(UnsupportedError, match=r"it needs an NVIDIA GPU and its driver: CUDA"):
            runtime.load(trt_artifact, "tensorrt")
        with pytest.raises(UnsupportedError, match="runs on CUDA alone"):
            runtime.load(trt_artifact, "tensorrt", device="cpu")
        with runtime.load(trt_artifact) as engine:
            assert engine.spec.format == "onnx"

    def test_a_flipped_byte_of_a_plan(self, trt_artifact: Path, tmp_path: Path) -> None:
        folder = tmp_path / "damaged"
        writable_copy(trt_artifact, folder)
        (path,) = (folder / "tensorrt").iterdir()
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=rf"tensorrt/{path.name} was changed"):
            read(folder)

    @without_card
    @pytest.mark.parametrize(
        ("plans", "message"),
        [
            (PlanOptions(), "there is none: name others, such as --compute-capability 8.0,8.9"),
            (
                PlanOptions(("9.0",)),
                "TensorRT-RTX .* builds for compute capabilities 7.5, 8.0.*not 9.0",
            ),
            (PlanOptions(("sm89",)), "is written as 8.9, got sm89"),
            (PlanOptions(("8.9",), max_tokens=1200), "cannot hold a protein of 2050"),
            (PlanOptions(("8.9",), max_seqlen=1024), "must be at least 2050, the longest protein"),
        ],
    )
    def test_plans_that_cannot_be_built(
        self, tiny_checkpoint: Path, tmp_path: Path, plans: PlanOptions, message: str
    ) -> None:
        source = WeightsSource("checkpoint", str(tiny_checkpoint))
        options = BuildOptions(
            source, ["tensorrt"], out=tmp_path / "x", of_format={"tensorrt": {"options": plans}}
        )
        with pytest.raises(ExportError, match=message):
            build(options, lambda line: None)
        assert list(tmp_path.iterdir()) == []


def test_what_the_runtime_calls_exists() -> None:
    """Nothing of it can run here, but a name that is wrong can be seen."""
    from cuda.bindings import runtime as cudart

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {
            trt: (
                "Runtime", "Refitter", "OnnxParserRefitter", "Weights", "volume", "nptype",
                "bfloat16", "ILogger",
            ),
            trt.ExecutionContextAllocationStrategy: ("ON_PROFILE_CHANGE",),
            trt.Runtime: ("deserialize_cuda_engine",),
            trt.ICudaEngine: (
                "create_execution_context", "get_tensor_dtype", "create_runtime_config",
            ),
            trt.IRuntimeConfig: (
                "create_runtime_cache", "set_runtime_cache",
                "set_execution_context_allocation_strategy",
                "dynamic_shapes_kernel_specialization_strategy",
            ),
            trt.IRuntimeCache: ("deserialize", "serialize"),
            trt.DynamicShapesKernelSpecializationStrategy: ("NONE",),
            trt.OnnxParserRefitter: ("refit_from_file",),
            trt.IExecutionContext: (
                "set_optimization_profile_async", "set_tensor_address", "set_input_shape",
                "get_tensor_shape", "execute_async_v3", "active_optimization_profile",
            ),
            trt.Refitter: (
                "get_all_weights", "set_named_weights", "get_missing_weights", "refit_cuda_engine",
            ),
            cudart: (
                "cudaGetDevice", "cudaGetDeviceProperties", "cudaDeviceGetAttribute",
                "cudaStreamCreate", "cudaStreamDestroy",
                "cudaStreamSynchronize", "cudaSetDevice", "cudaMalloc", "cudaFree",
                "cudaMemcpyAsync", "cudaMallocHost", "cudaFreeHost",
            ),
            cudart.cudaMemcpyKind: ("cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"),
        }  # fmt: skip
        missing = [name for owner, of in names.items() for name in of if not hasattr(owner, name)]
    assert missing == []
