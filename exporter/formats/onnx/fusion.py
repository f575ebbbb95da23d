"""Rotary and attention as one node, ``esm2::VarlenRotaryAttention``, for which we have a kernel.

A runtime without the kernel inlines the node's model-local function, of standard ops and
``esm2::VarlenAttention``.
"""

import onnx
import onnx.parser
import onnx_ir as ir
from onnx import FunctionProto
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporter.formats.onnx.attention import DOMAIN, OP_TYPE, OPSET, ROTARY_OP_TYPE, VERSION

# cos and sin: [T, 1, D], of all heads; the sine of the first half of D is negative.
_BODY = """
<opset_import: ["" : {opset}, "{domain}" : {version}], domain: "{domain}">
VarlenRotaryAttention <softmax_scale> (q, k, v, cu_seqlens, max_seqlen, cos, sin) => (out)
{{
  q_first, q_second = Split <axis = -1, num_outputs = 2> (q)
  k_first, k_second = Split <axis = -1, num_outputs = 2> (k)
  q_swapped = Concat <axis = -1> (q_second, q_first)
  k_swapped = Concat <axis = -1> (k_second, k_first)
  q_cos = Mul(q, cos)
  q_sin = Mul(q_swapped, sin)
  k_cos = Mul(k, cos)
  k_sin = Mul(k_swapped, sin)
  rotated_q = Add(q_cos, q_sin)
  rotated_k = Add(k_cos, k_sin)
  out = {domain}.VarlenAttention <softmax_scale: float = @softmax_scale>
    (rotated_q, rotated_k, v, cu_seqlens, max_seqlen)
}}
"""


def fuse_rotary(model: ir.Model) -> list[FunctionProto]:
    """Takes rotary into the attention nodes, where it is exactly what the function does.

    In half precision it is not: q and k are rounded between the two.

    Returns:
        The function, or nothing if no node was fused.
    """
    fused = [node for node in list(model.graph) if node.op_type == OP_TYPE and _fuse(node)]
    RemoveUnusedNodesPass()(model)
    if not fused:
        return []
    text = _BODY.format(opset=OPSET, domain=DOMAIN, version=VERSION)
    return [onnx.parser.parse_function(text)]


def _fuse(attention: ir.Node) -> bool:
    q, k = (_rotated(value) for value in attention.inputs[:2])
    if q is None or k is None or q[1:] != k[1:]:
        return False
    # Contacts read them too, rotated.
    if any(len(value.uses()) > 1 for value in attention.inputs[:2] if value is not None):
        return False
    inputs = [q[0], k[0], *attention.inputs[2:], *q[1:]]
    new = ir.node(ROTARY_OP_TYPE, inputs, attention.attributes, domain=DOMAIN, version=VERSION)
    before, after = attention.outputs[0], new.outputs[0]
    assert attention.graph is not None
    after.name, after.shape, after.type = before.name, before.shape, before.type
    ir.convenience.replace_nodes_and_values(
        attention.graph, attention, [attention], [new], [before], [after]
    )
    return True


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and not node.domain else None


def _rotated(value: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """x, cos and sin of x * cos + cat(second half of x, first half of x) * sin, or None."""
    add = _producer(value, "Add")
    plain = _producer(add.inputs[0], "Mul") if add else None
    crossed = _producer(add.inputs[1], "Mul") if add else None
    swapped = _producer(crossed.inputs[0], "Concat") if crossed else None
    if plain is None or crossed is None or swapped is None or len(swapped.inputs) != 2:
        return None
    x = plain.inputs[0]
    halves = _producer(swapped.inputs[0], "Split")
    if x is None or halves is None or halves.inputs != (x,):
        return None
    second, first = swapped.inputs
    if [first, second] != list(halves.outputs) or not _on_last_axis(halves, swapped):
        return None
    cos, sin = of_one_head(plain.inputs[1]), of_one_head(crossed.inputs[1])
    return (x, cos, sin) if cos is not None and sin is not None else None


def _on_last_axis(*nodes: ir.Node) -> bool:
    return all(node.attributes.get_int("axis", 0) in (-1, 2) for node in nodes)


def of_one_head(table: ir.Value | None) -> ir.Value | None:
    """The [T, 1, D] that was repeated into ``table``, [T, H, D]."""
    tile = _producer(table, "Tile")
    expand = _producer(tile.inputs[0], "Expand") if tile else None
    source = expand.inputs[0] if expand else None
    if source is None or source.shape is None or table is None or table.shape is None:
        return None
    if len(table.shape) != 3:
        return None
    same = source.shape[0] == table.shape[0] and source.shape[2] == table.shape[2]
    return source if same and source.shape[1] == 1 else None
