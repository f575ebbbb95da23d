"""ONNX Runtime's packed attention for CUDA in place of ``esm2::VarlenAttention``.

``com.microsoft.PackedMultiHeadAttention`` takes ``[T, H * D]``, and in ``token_offset``
[N, max_seqlen] where each token would stand in a padded batch: the places of the tokens in the
order of the pack, then those of the padding. Source: ONNX Runtime, docs/ContribOperators.md.
"""

import onnx
import onnx.parser
import onnx_ir as ir
from onnx import FunctionProto, ModelProto
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporter.formats.onnx.attention import (
    DOMAIN,
    OP_TYPE,
    OPSET,
    PACKED_OP_TYPE,
    VERSION,
    attention_function,
)
from exporter.formats.onnx.fusion import of_one_head
from exporter.formats.onnx.vendor_ops import VENDOR, reference_functions

TOKEN_OFFSET = "token_offset"

# place of a token: its index in the pack; of padding: T and the padding before it. Inverting these
# places gives token_offset without looking for the padding, whose number would have to come to the
# host. Sizes come from Shape, whose result ONNX Runtime keeps on the host; int64, because its
# kernels for CUDA take no other type everywhere.
_TOKEN_OFFSET = """
<opset_import: ["" : {opset}], domain: "{domain}">
TokenOffset (cu_seqlens, max_seqlen) => (token_offset)
{{
  zero = Constant <value = int64 {{0}}> ()
  one = Constant <value = int64 {{1}}> ()
  first = Constant <value = int64[1] {{0}}> ()
  second = Constant <value = int64[1] {{1}}> ()
  last = Constant <value = int64[1] {{-1}}> ()
  all = Constant <value = int64[1] {{9223372036854775807}}> ()

  bounds = Cast <to = 7> (cu_seqlens)
  starts_1d = Slice(bounds, first, last, first)
  ends_1d = Slice(bounds, second, all, first)
  total = Slice(bounds, last, all, first)
  starts = Unsqueeze(starts_1d, second)
  ends = Unsqueeze(ends_1d, second)
  lengths = Sub(ends, starts)

  columns_1d = Range(zero, max_seqlen, one)
  columns = Unsqueeze(columns_1d, first)
  proteins = Shape(starts_1d)
  longest = Shape(columns_1d)
  shape = Concat <axis = 0> (proteins, longest)
  num_cells_1d = Mul(proteins, longest)
  num_cells = Squeeze(num_cells_1d)
  cells_1d = Range(zero, num_cells, one)
  cells = Reshape(cells_1d, shape)

  token_places = Add(starts, columns)
  tokens_through = Sub(cells, ends)
  padding_places = Add(tokens_through, total)
  is_token = Less(columns, lengths)
  places = Where(is_token, token_places, padding_places)
  flat_places = Reshape(places, last)
  flat = ScatterElements <axis = 0> (cells_1d, flat_places, cells_1d)
  inverse = Cast <to = 6> (flat)
  token_offset = Reshape(inverse, shape)
}}
"""

# The same attention by the function of model.onnx: to run the graph where there is no CUDA.
# token_offset is not read; the parity gate compares it with its definition.
_REFERENCE = """
<opset_import: ["" : {opset}, "{domain}" : {version}], domain: "{domain}">
PackedMultiHeadAttention <num_heads, scale> (q, k, v, bias, token_offset, cu_seqlens) => (out)
{{
  heads = Constant <value = int64[3] {{-1, {num_heads}, {head_dim}}}> ()
  flat = Constant <value = int64[2] {{-1, {width}}}> ()
  max_seqlen = Constant <value = int64 {{0}}> ()
  q_heads = Reshape(q, heads)
  k_heads = Reshape(k, heads)
  v_heads = Reshape(v, heads)
  attended = {domain}.VarlenAttention <softmax_scale: float = @scale>
    (q_heads, k_heads, v_heads, cu_seqlens, max_seqlen)
  out = Reshape(attended, flat)
}}
"""


def use_packed_attention(model: ir.Model, num_heads: int, head_dim: int) -> FunctionProto:
    """Replaces every ``esm2::VarlenAttention``; all of them read one ``token_offset``.

    Args:
        model: with ``cu_seqlens`` and ``max_seqlen`` among its inputs.
        num_heads: H.
        head_dim: D.

    Returns:
        The function that computes ``token_offset``.
    """
    graph = model.graph
    cu_seqlens, max_seqlen = graph.inputs[1:3]
    offset = ir.node("TokenOffset", [cu_seqlens, max_seqlen], domain=DOMAIN)
    token_offset = offset.outputs[0]
    token_offset.name = TOKEN_OFFSET
    token_offset.type = ir.TensorType(ir.DataType.INT32)
    token_offset.shape = ir.Shape(["N", "max_seqlen"])
    width = num_heads * head_dim
    rows = ir.node("Constant", [], {"value_ints": [-1, width]})
    heads = ir.node("Constant", [], {"value_ints": [-1, num_heads, head_dim]})
    graph.insert_before(graph[0], [offset, rows, heads])
    for node in [node for node in graph if node.op_type == OP_TYPE]:
        packed = _packed(node, token_offset, rows.outputs[0], num_heads)
        # Shape inference does not know the vendor's op.
        shape = node.outputs[0].shape
        assert shape is not None
        packed.outputs[0].type = node.outputs[0].type
        packed.outputs[0].shape = ir.Shape([shape[0], width])
        shaped = ir.node("Reshape", [packed.outputs[0], heads.outputs[0]])
        _replace(node, [packed, shaped])
    RemoveUnusedNodesPass()(model)
    graph.opset_imports[VENDOR] = 1
    return token_offset_function()


def token_offset_function() -> FunctionProto:
    """``(cu_seqlens [N + 1] int32, max_seqlen int64) -> token_offset [N, max_seqlen] int32``."""
    return onnx.parser.parse_function(_TOKEN_OFFSET.format(opset=OPSET, domain=DOMAIN))


def _packed(node: ir.Node, token_offset: ir.Value, rows: ir.Value, num_heads: int) -> ir.Node:
    graph, cu_seqlens = node.graph, node.inputs[3]
    assert graph is not None
    flat = [ir.node("Reshape", [x, rows]) for x in node.inputs[:3]]
    graph.insert_before(node, flat)
    q, k, v = (reshape.outputs[0] for reshape in flat)
    attributes = {"num_heads": num_heads, "scale": node.attributes.get_float("softmax_scale")}
    inputs = [q, k, v, None, token_offset, cu_seqlens]
    return ir.node(PACKED_OP_TYPE, inputs, attributes, domain=VENDOR, version=1)


def _replace(node: ir.Node, new: list[ir.Node]) -> None:
    before, after = node.outputs[0], new[-1].outputs[0]
    assert node.graph is not None
    after.name, after.shape, after.type = before.name, before.shape, before.type
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], new, [before], [after])


def share_rotary_tables(model: ir.Model) -> None:
    """Rotary reads [T, 1, D] tables: whole ones of [T, H, D] pay on CPUs alone."""
    for node in list(model.graph):
        table = node.outputs[0]
        one_head = of_one_head(table)
        if one_head is not None:
            ir.convenience.replace_all_uses_with(table, one_head)
    RemoveUnusedNodesPass()(model)


def without_vendor_ops(
    model: ModelProto, onnx_dtype: int, num_heads: int, head_dim: int
) -> ModelProto:
    """The model in standard ops, as ONNX Runtime runs it without CUDA; all else is the same.

    Args:
        model: as ``lower`` of ``exporter.formats.onnx.cuda`` made it; changed in place.
        onnx_dtype: of its activations.
        num_heads: H.
        head_dim: D.
    """
    for node in model.graph.node:
        if node.domain == VENDOR:
            # Another domain: a runtime that knows the vendor's op takes no function for it.
            node.domain = DOMAIN
    text = _REFERENCE.format(
        opset=OPSET, domain=DOMAIN, version=VERSION,
        num_heads=num_heads, head_dim=head_dim, width=num_heads * head_dim,
    )  # fmt: skip
    model.functions.extend(reference_functions(num_heads, head_dim))
    attention = attention_function(onnx_dtype, num_heads, head_dim)
    model.functions.extend([onnx.parser.parse_function(text), attention])
    return model
