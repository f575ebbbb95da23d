"""``model.trt.onnx``: the graph that TensorRT builds, of standard ops alone.

Attention is written out on proteins padded in the graph, between tensors whose names TensorRT
keeps: there its own attention layers go in, where it has kernels for them
(``exporter.formats.tensorrt.attention``). As it stands the graph runs in ONNX Runtime, so that it
is judged on a machine without a card.
"""

import copy
from pathlib import Path

import onnx
import onnx.inliner
import onnx.parser
import onnx_ir as ir
from onnx import ModelProto
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporter.errors import ExportError
from exporter.formats.onnx import export as onnx_cpu
from exporter.formats.onnx.attention import DOMAIN, ONNX_DTYPES, OP_TYPE, OPSET
from exporter.formats.onnx.packed_attention import share_rotary_tables
from exporter.formats.tensorrt.names import CELLS, LENGTHS, SOURCES, tensor_name
from exporter.model.packed_forward import PackedESM2

# sources [N, max_seqlen]: the token that each cell of the grid takes. Cells of padding take the
# tokens that follow: real numbers, masked out, and no zeros have to be written first.
# cells [T]: where each token stands in the flattened grid. lengths [N]: tokens of each protein.
_GRID = """
<opset_import: ["" : {opset}], domain: "{domain}">
Grid (input_ids, cu_seqlens, max_seqlen) => (sources, cells, lengths, is_key)
{{
  zero = Constant <value = int64 {{0}}> ()
  one = Constant <value = int64 {{1}}> ()
  first = Constant <value = int64[1] {{0}}> ()
  second = Constant <value = int64[1] {{1}}> ()
  last = Constant <value = int64[1] {{-1}}> ()
  all = Constant <value = int64[1] {{9223372036854775807}}> ()

  bounds = Cast <to = 7> (cu_seqlens)
  starts = Slice(bounds, first, last, first)
  ends = Slice(bounds, second, all, first)
  wide_lengths = Sub(ends, starts)
  lengths = Cast <to = 6> (wide_lengths)

  num_tokens_1d = Shape(input_ids)
  num_tokens = Squeeze(num_tokens_1d)
  last_token = Sub(num_tokens, one)
  columns_1d = Range(zero, max_seqlen, one)
  columns = Unsqueeze(columns_1d, first)
  rows = Unsqueeze(starts, second)
  tokens_or_more = Add(rows, columns)
  sources = Min(tokens_or_more, last_token)
  limits = Cast <to = 7> (lengths)
  row_lengths = Unsqueeze(limits, second)
  is_token = Less(columns, row_lengths)
  head_axes = Constant <value = int64[2] {{1, 2}}> ()
  is_key = Unsqueeze(is_token, head_axes)

  zeros = ConstantOfShape <value = int64[1] {{0}}> (num_tokens_1d)
  num_proteins = Shape(starts)
  ones = Expand(one, num_proteins)
  is_start = ScatterElements <axis = 0> (zeros, starts, ones)
  proteins_through = CumSum(is_start, zero)
  protein = Sub(proteins_through, one)
  start = Gather(starts, protein)
  tokens = Range(zero, num_tokens, one)
  column = Sub(tokens, start)
  row_cells = Mul(protein, max_seqlen)
  cells = Add(row_cells, column)
}}
"""

# The softmax in float32, as the reference takes it.
_ATTENTION = """
<opset_import: ["" : {opset}], domain: "{domain}">
GridAttention (q, k, v, is_key) => (out)
{{
  k_columns = Transpose <perm = [0, 1, 3, 2]> (k)
  products = MatMul(q, k_columns)
  wide_products = Cast <to = 1> (products)
  never = Constant <value = float {{-inf}}> ()
  scores = Where(is_key, wide_products, never)
  wide_weights = Softmax <axis = -1> (scores)
  weights = Cast <to = {dtype}> (wide_weights)
  out = MatMul(weights, v)
}}
"""


def lower(packed: PackedESM2, folder: Path) -> ModelProto:
    """The graph, its parameters left in ``weights.safetensors``.

    It has no ``pooled``: the runtime pools in float64, which TensorRT does not know, and sums in
    float32 were up to 2.7 times as far from the truth as eager fair-esm's.

    Args:
        packed: on the CPU, in the dtype to export.
        folder: of the artifact, with ``weights.safetensors``.

    Raises:
        ExportError: a linear probe reads vectors that would have to be pooled in the graph.
    """
    if packed.head is not None and packed.head.entry.pool not in (None, "cls"):
        raise ExportError(
            "target tensorrt has no float64, in which a linear probe's mean is taken: give "
            "--probe-on cls or residues, or leave tensorrt out of --target"
        )
    dtype = ONNX_DTYPES[str(packed.embed_tokens.weight.dtype).removeprefix("torch.")]
    unpooled = copy.copy(packed)
    unpooled.pool = None
    model = onnx_cpu.export_graph(unpooled)
    share_rotary_tables(model)
    _attend_on_grid(model, dtype, packed.num_heads, packed.head_dim)
    proto = onnx_cpu.finish(model, packed, folder)
    values = {"opset": OPSET, "domain": DOMAIN, "dtype": dtype}
    bodies = (_GRID, _ATTENTION)
    proto.functions.extend(onnx.parser.parse_function(text.format(**values)) for text in bodies)
    return _inlined(proto)


def without_written_out_attention(model: ModelProto, suffix: str) -> ModelProto:
    """A copy with a sum of all that it reads where attention stood, for a layer to replace.

    Not left to TensorRT as dead code: a shape that only dead code reads fails its builder.

    Args:
        model: as ``lower`` made it.
        suffix: of the roles between which it is cut, ``""`` or ``"_grid"``.
    """
    graph_model = ir.from_proto(model)
    graph = graph_model.graph
    dtype = model.graph.output[0].type.tensor_type.elem_type
    values = {value.name: value for node in graph for value in node.outputs}
    layer = 0
    while (out := values.get(tensor_name(layer, "out" + suffix))) is not None:
        read = [values[tensor_name(layer, role + suffix)] for role in ("q", "k", "v")]
        new = []
        if suffix:
            axes = ir.node("Constant", [], {"value_ints": [1, 2, 3]})
            rows = ir.node("Unsqueeze", [values[LENGTHS], axes.outputs[0]])
            cast = ir.node("Cast", rows.outputs, {"to": dtype})
            new = [axes, rows, cast]
            read.append(cast.outputs[0])
        total = ir.node("Sum", read)
        after = total.outputs[0]
        after.shape, after.type = out.shape, out.type
        node = out.producer()
        assert node is not None
        ir.convenience.replace_nodes_and_values(graph, node, [node], [*new, total], [out], [after])
        after.name = tensor_name(layer, "out" + suffix)
        layer += 1
    RemoveUnusedNodesPass()(graph_model)
    return ir.to_proto(graph_model)


def _attend_on_grid(model: ir.Model, dtype: int, num_heads: int, head_dim: int) -> None:
    """Replaces every ``esm2::VarlenAttention`` by padding, attention and its way back."""
    graph = model.graph
    grid = ir.node("Grid", list(graph.inputs[:3]), num_outputs=4, domain=DOMAIN)
    sources, cells, lengths, is_key = grid.outputs
    sources.name, cells.name, lengths.name = SOURCES, CELLS, LENGTHS
    graph.insert_before(graph[0], [grid])
    attentions = [node for node in graph if node.op_type == OP_TYPE]
    for layer, node in enumerate(attentions):
        softmax_scale = ir.tensor(
            node.attributes.get_float("softmax_scale"), dtype=ir.DataType(dtype)
        )
        scale = ir.node("Constant", [], {"value": softmax_scale})
        scaled = ir.node("Mul", [node.inputs[0], scale.outputs[0]])
        rows = [scaled.outputs[0], *node.inputs[1:3]]
        on_grid = [ir.node("Gather", [row, sources], {"axis": 0}) for row in rows]
        swap = {"perm": [0, 2, 1, 3]}
        heads = [ir.node("Transpose", [padded.outputs[0]], swap) for padded in on_grid]
        q, k, v = (transposed.outputs[0] for transposed in heads)
        attended = ir.node("GridAttention", [q, k, v, is_key], domain=DOMAIN)
        back = ir.node("Transpose", [attended.outputs[0]], swap)
        shape = ir.node("Constant", [], {"value_ints": [-1, num_heads, head_dim]})
        flat = ir.node("Reshape", [back.outputs[0], shape.outputs[0]])
        out = ir.node("Gather", [flat.outputs[0], cells], {"axis": 0})
        for value, role in zip(
            [*rows, q, k, v, attended.outputs[0]],
            ["q", "k", "v", "q_grid", "k_grid", "v_grid", "out_grid"],
            strict=True,
        ):
            assert value is not None
            value.name = tensor_name(layer, role)
        before, after = node.outputs[0], out.outputs[0]
        after.shape, after.type = before.shape, before.type
        new = [scale, scaled, *on_grid, *heads, attended, back, shape, flat, out]
        ir.convenience.replace_nodes_and_values(graph, node, [node], new, [before], [after])
        after.name = tensor_name(layer, "out")


def _inlined(proto: ModelProto) -> ModelProto:
    """Of standard ops alone: TensorRT's parser knows no others."""
    model = ir.from_proto(onnx.inliner.inline_local_functions(proto))
    RemoveUnusedNodesPass()(model)
    for domain in set(model.opset_imports) - {""}:
        del model.opset_imports[domain]
    return ir.to_proto(model)
