"""The attention nodes of ``model.onnx``: their functions, their kernels, and what is fused."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from exporter.formats.native import ONNXRUNTIME_LIBRARY, compile_libraries
from exporter.formats.onnx.attention import (
    OPSET,
    QUERY_BLOCK,
    ROTARY_OP_TYPE,
    attention_function,
    register_schema,
)
from exporter.formats.onnx.fusion import fuse_rotary
from runtime.ops import varlen_attention

Arrays = dict[str, NDArray[Any]]
HEADER = f'<ir_version: 10, opset_import: ["": {OPSET}, "esm2": 1]>\n'


def standard_attention(feeds: Arrays, scale: float) -> NDArray[np.float64]:
    """In float64, of q and k as they are."""
    wide = (torch.from_numpy(feeds[name].astype(np.float64)) for name in "qkv")
    bounds = torch.from_numpy(feeds["cu_seqlens"])
    choice = varlen_attention.choose(bounds.device, torch.float64, 16, "standard")
    with varlen_attention.using(choice):
        out = torch.ops.esm2.varlen_attention(*wide, bounds, int(feeds["max_seqlen"]), scale)
    array: NDArray[np.float64] = out.numpy()
    return array


def feeds_of(lengths: Sequence[int], head_dim: int, dtype: type) -> Arrays:
    random = np.random.default_rng(0)
    shape = (sum(lengths), 2, head_dim)
    feeds = {name: random.standard_normal(shape).astype(dtype) for name in "qkv"}
    feeds["cu_seqlens"] = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    feeds["max_seqlen"] = np.array(max(lengths))
    return feeds


@pytest.mark.parametrize(
    "lengths", [[1], [QUERY_BLOCK], [QUERY_BLOCK + 1, 3, 2 * QUERY_BLOCK], [5, 1, 1, 9]]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_function_is_attention(lengths: list[int], dtype: type) -> None:
    """Proteins of exactly one block, of several, and of a rest."""
    feeds = feeds_of(lengths, 8, dtype)
    name = "float" if dtype == np.float32 else "float16"
    model = onnx.parser.parse_model(
        f"{HEADER} attention ({name}[T,2,8] q, {name}[T,2,8] k, {name}[T,2,8] v, "
        f"int32[B] cu_seqlens, int64 max_seqlen) => ({name}[T,2,8] out) {{ "
        "out = esm2.VarlenAttention <softmax_scale: float = 0.3> "
        "(q, k, v, cu_seqlens, max_seqlen) }"
    )
    onnx_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model.functions.append(attention_function(onnx_type, 2, 8))
    (out,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    expected = standard_attention(feeds, 0.3)
    np.testing.assert_allclose(out, expected, atol=2e-6 if dtype == np.float32 else 4e-3)


def unfused(head_dim: int, rotation: str) -> onnx.ModelProto:
    """As torch.onnx exports it: tables of one head, repeated."""
    tensor = f"float[T,2,{head_dim}]"
    return onnx.parser.parse_model(
        f"{HEADER} rotary ({tensor} q, {tensor} k, {tensor} v, int32[B] cu_seqlens, "
        f"int64 max_seqlen, float[T,1,{head_dim}] one_cos, float[T,1,{head_dim}] one_sin) "
        f"""=> ({tensor} out)
        <float[T,1,{head_dim}] cos_1, float[T,1,{head_dim}] sin_1, {tensor} cos, {tensor} sin>
        {{
          unchanged = Constant <value = int64[3] {{1, 1, 1}}> ()
          heads = Constant <value = int64[3] {{1, 2, 1}}> ()
          cos_1 = Expand (one_cos, unchanged)
          sin_1 = Expand (one_sin, unchanged)
          cos = Tile (cos_1, heads)
          sin = Tile (sin_1, heads)
          q_1, q_2 = Split <axis = -1, num_outputs = 2> (q)
          k_1, k_2 = Split <axis = -1, num_outputs = 2> (k)
          {rotation}
          rotated_q = Add (q_cos, q_sin)
          rotated_k = Add (k_cos, k_sin)
          out = esm2.VarlenAttention <softmax_scale: float = {ROTARY_SCALE}>
            (rotated_q, rotated_k, v, cu_seqlens, max_seqlen)
        }}"""
    )


# Scores of a few at a head dim of 128: of larger ones float32 has fewer digits.
ROTARY_SCALE = 0.1

ROTATION = """
    q_swapped = Concat <axis = -1> (q_2, q_1)
    k_swapped = Concat <axis = -1> (k_2, k_1)
    q_cos = Mul (q, cos)
    k_cos = Mul (k, cos)
    q_sin = Mul (q_swapped, sin)
    k_sin = Mul (k_swapped, sin)
"""


def fused(head_dim: int) -> onnx.ModelProto:
    register_schema()
    model = ir.from_proto(unfused(head_dim, ROTATION))
    functions = fuse_rotary(model)
    proto = ir.to_proto(model)
    proto.functions.extend([*functions, attention_function(onnx.TensorProto.FLOAT, 2, head_dim)])
    return proto


@pytest.mark.parametrize("by", ["function", "kernel"])
@pytest.mark.parametrize("head_dim", [16, 20, 24, 32, 64, 128])
def test_rotary_and_attention_in_one_node(head_dim: int, by: str) -> None:
    """Tables of any numbers: what is rotated wrongly must come out wrong by the kernel too."""
    lengths = [1, 7, 33, 600]
    feeds = feeds_of(lengths, head_dim, np.float32)
    random = np.random.default_rng(1)
    for name in ("one_cos", "one_sin"):
        feeds[name] = random.standard_normal((sum(lengths), 1, head_dim)).astype(np.float32)
    model = fused(head_dim)
    assert [n.op_type for n in model.graph.node if n.domain == "esm2"] == [ROTARY_OP_TYPE]
    options = onnxruntime.SessionOptions()
    if by == "kernel":
        options.register_custom_ops_library(str(compile_libraries() / ONNXRUNTIME_LIBRARY))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    (out,) = session.run(None, feeds)
    rotated = dict(feeds)
    for name in "qk":
        x = feeds[name].astype(np.float64)
        swapped = np.roll(x, head_dim // 2, axis=-1)
        rotated[name] = x * feeds["one_cos"] + swapped * feeds["one_sin"]
    expected = standard_attention(rotated, ROTARY_SCALE)
    assert np.linalg.norm(out - expected) / np.linalg.norm(expected) < 1e-6


@pytest.mark.parametrize(
    "wrong",
    [
        ROTATION.replace("(q_2, q_1)", "(q_1, q_2)"),
        ROTATION.replace("(k_2, k_1)", "(k_2, k_2)"),
        ROTATION.replace("axis = -1> (q_2, q_1)", "axis = 1> (q_2, q_1)"),
        ROTATION.replace("k_cos = Mul (k, cos)", "k_cos = Mul (k, sin)"),
        ROTATION.replace("q_cos = Mul (q, cos)", "q_cos = Mul (v, cos)"),
        ROTATION.replace("k_cos = Mul (k, cos)", "k_cos = Sub (k, cos)"),
        # As in half precision, where q is rounded after it was rotated.
        ROTATION.replace("q_cos = Mul (q, cos)", "q_0 = Mul (q, cos) q_cos = Identity (q_0)"),
    ],
)
def test_another_rotation_stays_as_it_is(wrong: str) -> None:
    assert wrong != ROTATION
    model = ir.from_proto(unfused(16, wrong))
    assert not fuse_rotary(model)
    assert ROTARY_OP_TYPE not in {node.op_type for node in model.graph}


@pytest.mark.parametrize("name", ["one_cos", "one_sin"])
def test_the_kernel_refuses_tables_of_other_shapes(name: str) -> None:
    feeds = feeds_of([5, 6], 16, np.float32)
    feeds |= {key: np.zeros((11, 1, 16), np.float32) for key in ("one_cos", "one_sin")}
    feeds[name] = np.zeros((10, 1, 16), np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(compile_libraries() / ONNXRUNTIME_LIBRARY))
    session = onnxruntime.InferenceSession(fused(16).SerializeToString(), options)
    with pytest.raises(Exception, match=r"cos and sin must be \[T, 1, D\]"):
        session.run(None, feeds)
