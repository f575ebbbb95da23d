"""TensorRT's attention layers: what its network is given, and what its builder takes of it."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import onnx
import pytest

from exporter.formats.tensorrt import attention as tensorrt_attention
from exporter.formats.tensorrt import graph as tensorrt_graph
from exporter.formats.tensorrt import plan as tensorrt_plan
from exporter.formats.tensorrt.attention import RefusedError
from exporter.formats.tensorrt.names import FILE_NAME, tensor_name
from exporter.formats.tensorrt.plan import PlanRecipe, build_plan
from exporter.weights import shared as shared_weights
from runtime.engines.tensorrt.library import collecting_logger, import_library
from runtime.manifest_schema import Profile
from tests.conftest import TINY, wide_model

pytestmark = pytest.mark.slow

trt = import_library("tensorrt_rtx")


def network_of(folder: Path, rung: str) -> tuple[Any, ...]:
    """TensorRT's network with the attention of ``rung``, and what must live as long as it."""
    logger = collecting_logger(trt)
    builder = trt.Builder(logger)
    path = folder / FILE_NAME
    network, parser = tensorrt_plan._parsed(trt, builder, logger, path, rung)
    tensorrt_attention.lower_attention(trt, network, rung, TINY[0])
    return network, parser, builder, logger


def layers_of(network: Any, kind: Any) -> list[Any]:
    layers = tensorrt_attention._layers(network)
    return [layer for layer in layers if layer.type == kind]


class TestAttentionLayers:
    """What TensorRT is given, read back from its network."""

    @pytest.mark.parametrize(
        ("rung", "suffix", "form", "query_lengths", "lengths"),
        [
            ("packed", "", "PACKED_NHD", "cu_seqlens", "cu_seqlens"),
            ("padded", "_grid", "PADDED_BHND", None, "lengths"),
        ],
    )
    def test_stand_where_the_written_out_attention_stood(
        self, trt_artifact: Path, rung: str, suffix: str, form: str,
        query_lengths: str | None, lengths: str,
    ) -> None:  # fmt: skip
        network, *_alive = network_of(trt_artifact, rung)
        inputs = layers_of(network, trt.LayerType.ATTENTION_INPUT)
        assert len(inputs) == TINY[0]
        for number, layer in enumerate(inputs):
            layer.__class__ = trt.IAttentionInputLayer
            attention = layer.attention
            names = [attention.get_input(place).name for place in range(3)]
            assert names == [tensor_name(number, role + suffix) for role in "qkv"]
            assert attention.key_value_form == getattr(trt.AttentionIOForm, form)
            assert attention.query_form == getattr(trt.AttentionIOForm, form)
            assert attention.key_value_lengths.name == lengths
            asked = attention.query_lengths
            assert (asked and asked.name) == query_lengths
            assert attention.causal_kind == trt.CausalMaskKind.NONE
            assert attention.mask is None
            assert attention.norm_op == trt.AttentionNormalizationOp.SOFTMAX
        # Nothing of the attention that was written out is left, and nothing reads where it stood.
        assert layers_of(network, trt.LayerType.SOFTMAX) == []
        read = {
            tensor.name
            for layer in tensorrt_attention._layers(network)
            for place in range(layer.num_inputs)
            if (tensor := layer.get_input(place)) is not None
        }
        assert not {tensor_name(number, "out" + suffix) for number in range(TINY[0])} & read

    def test_the_written_out_attention_stays_where_nothing_is_lowered(
        self, trt_artifact: Path
    ) -> None:
        network, *_alive = network_of(trt_artifact, "masked")
        assert layers_of(network, trt.LayerType.ATTENTION_INPUT) == []
        assert len(layers_of(network, trt.LayerType.SOFTMAX)) == TINY[0]

    def test_every_rung_but_the_packed_one_builds(self, trt_artifact: Path) -> None:
        for rung in ("padded", "masked"):
            assert len(bytes(build_plan(trt, recipe_of(trt_artifact, rung)))) > 100_000

    def test_all_but_the_kernel_of_the_packed_one_builds(
        self, trt_artifact: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where there is a kernel it is not held up by the padding that it makes needless."""
        monkeypatch.setattr(tensorrt_plan, "lower_attention", lambda *_: None)
        recipe = recipe_of(trt_artifact, "packed")
        assert len(bytes(build_plan(trt, recipe))) > 100_000

    @pytest.mark.parametrize("rung", ["packed", "padded"])
    @pytest.mark.parametrize(("dtype", "added_in"), [("float16", "FLOAT"), ("bfloat16", "BF16")])
    def test_float16_is_widened_around_it_to_add_in_float32(
        self, tmp_path: Path, dtype: str, added_in: str, rung: str
    ) -> None:
        packed = wide_model(dtype)
        shared_weights.write(packed, tmp_path)
        onnx.save(tensorrt_graph.lower(packed, tmp_path), tmp_path / FILE_NAME)
        network, *_alive = network_of(tmp_path, rung)
        for layer in layers_of(network, trt.LayerType.ATTENTION_INPUT):
            layer.__class__ = trt.IAttentionInputLayer
            given = [layer.attention.get_input(place).dtype.name for place in range(3)]
            assert given == [added_in] * 3
        graph_dtype = {"float16": "HALF", "bfloat16": "BF16"}[dtype]
        assert network.get_output(0).dtype.name == graph_dtype

    @pytest.mark.parametrize(
        ("dtype", "kernel"), [("float32", False), ("float16", True), ("bfloat16", True)]
    )
    def test_padded_attention_is_one_kernel_in_half_precision(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, kernel: bool
    ) -> None:
        """Forbidden to write it out, TensorRT must have a kernel or say that it has none."""
        # Of the tiny model's widths TensorRT-RTX 1.7.1 builds no bfloat16.
        packed = wide_model(dtype)
        shared_weights.write(packed, tmp_path)
        path = tmp_path / FILE_NAME
        onnx.save(tensorrt_graph.lower(packed, tmp_path), path)
        lower = tensorrt_attention.lower_attention

        def without_writing_out(trt: Any, network: Any, rung: str, num_layers: int) -> None:
            lower(trt, network, rung, num_layers)
            for layer in layers_of(network, trt.LayerType.ATTENTION_INPUT):
                layer.__class__ = trt.IAttentionInputLayer
                layer.attention.decomposable = False

        monkeypatch.setattr(tensorrt_plan, "lower_attention", without_writing_out)
        recipe = recipe_of(tmp_path, "padded")
        refused = nullcontext() if kernel else pytest.raises(RefusedError, match="dedicated kernel")
        with refused:
            assert len(bytes(build_plan(trt, recipe))) > 1_000_000


def recipe_of(folder: Path, rung: str) -> PlanRecipe:
    """Of a tiny plan for an Ada card."""
    path = folder / FILE_NAME
    return PlanRecipe(
        graph=path,
        num_layers=TINY[0],
        compute_capability="8.9",
        rung=rung,
        profiles=[Profile(512, 8, 128)],
        refit=False,
        timing_cache=None,
    )
