"""``esm2::AddContacts`` for ONNX: its schema, and a body of standard ONNX ops.

As with ``esm2::VarlenAttention``, the body is a model-local function: a runtime that knows no
kernel for the node inlines it.
"""

import onnx
import onnx.parser
import onnx_ir as ir

from exporter.formats.onnx.attention import DOMAIN, OPSET, register_op

OP_TYPE = "AddContacts"

# One iteration is one protein; see runtime.ops.contacts for the formula.
_BODY = """
<opset_import: ["" : {opset}], domain: "{domain}">
{op_type} <softmax_scale> (logits, q, k, cu_seqlens, is_kept, weight) => (out)
{{
  zero = Constant <value = int64[1] {{0}}> ()
  one = Constant <value = int64[1] {{1}}> ()
  last = Constant <value = int64[1] {{-1}}> ()
  all = Constant <value = int64[1] {{9223372036854775807}}> ()
  tokens_axis = Constant <value = int64[1] {{1}}> ()
  keys_axis = Constant <value = int64[1] {{2}}> ()
  both_axes = Constant <value = int64[2] {{1, 2}}> ()
  inner_start = Constant <value = int64[2] {{1, 1}}> ()
  inner_end = Constant <value = int64[2] {{-1, -1}}> ()
  as_row = Constant <value = int64[3] {{1, 1, -1}}> ()
  as_column = Constant <value = int64[3] {{1, -1, 1}}> ()
  of_heads = Constant <value = int64[3] {{-1, 1, 1}}> ()
  flat = Constant <value = int64[1] {{-1}}> ()
  go_on = Constant <value = bool {{1}}> ()

  bounds = Cast <to = 7> (cu_seqlens)
  starts = Slice(bounds, zero, last, zero)
  proteins_1d = Shape(starts)
  proteins = Squeeze(proteins_1d)
  wide_q = Cast <to = 1> (q)
  wide_k = Cast <to = 1> (k)
  scale = Constant <value_float: float = @softmax_scale> ()
  scaled_q = Mul(wide_q, scale)
  factors = Reshape(weight, of_heads)
  none = SequenceEmpty <dtype: int = 1> ()
  last_protein, shares = Loop (proteins, go_on, zero, none) <body = one_protein
    (int64 i, bool go_on_in, int64[1] protein, seq(float) so_far)
    => (bool go_on_out, int64[1] next_protein, seq(float) with_this) {{
      go_on_out = Identity(go_on_in)
      next_protein = Add(protein, one)
      start = Gather(bounds, protein)
      end = Gather(bounds, next_protein)
      q_rows = Slice(scaled_q, start, end, zero)
      k_rows = Slice(wide_k, start, end, zero)
      queries = Transpose <perm = [1, 0, 2]> (q_rows)
      keys = Transpose <perm = [1, 2, 0]> (k_rows)
      scores = MatMul(queries, keys)
      attention = Softmax <axis = -1> (scores)
      among_residues = Slice(attention, inner_start, inner_end, both_axes)
      kept_tokens = Slice(is_kept, start, end, zero)
      kept_residues = Slice(kept_tokens, one, last, zero)
      kept = Cast <to = 1> (kept_residues)
      kept_row = Reshape(kept, as_row)
      kept_column = Reshape(kept, as_column)
      of_kept = Mul(among_residues, kept_row)
      maps = Mul(of_kept, kept_column)
      transposed = Transpose <perm = [0, 2, 1]> (maps)
      symmetric = Add(maps, transposed)
      sums = ReduceSum <keepdims = 1> (symmetric, keys_axis)
      sums_row = Transpose <perm = [0, 2, 1]> (sums)
      total = ReduceSum <keepdims = 1> (sums, tokens_axis)
      product = Mul(sums, sums_row)
      average = Div(product, total)
      corrected = Sub(symmetric, average)
      weighted = Mul(corrected, factors)
      share = ReduceSum <keepdims = 0> (weighted, zero)
      square = Shape(share)
      ones = ConstantOfShape <value = int64[1] {{1}}> (square)
      upper = Trilu <upper = 1> (ones)
      is_pair = Cast <to = 9> (upper)
      flat_share = Reshape(share, flat)
      flat_is_pair = Reshape(is_pair, flat)
      pairs = Compress <axis = 0> (flat_share, flat_is_pair)
      with_this = SequenceInsert(so_far, pairs)
  }}>
  added = ConcatFromSequence <axis = 0> (shares)
  out = Add(logits, added)
}}
"""


def register_contacts_schema() -> None:
    """Makes the node known, see ``register_op``."""
    inputs = {
        "logits": ("tensor(float)", "[P]"),
        "q": ("T", "[T, H, D] after rotary"),
        "k": ("T", "[T, H, D] after rotary"),
        "cu_seqlens": ("tensor(int32)", "[N + 1]"),
        "is_kept": ("tensor(bool)", "[T]"),
        "weight": ("tensor(float)", "[H]"),
    }
    register_op(OP_TYPE, inputs, ("tensor(float)", "[P]"))


def contacts_function() -> onnx.FunctionProto:
    """The function's body."""
    return onnx.parser.parse_function(_BODY.format(op_type=OP_TYPE, opset=OPSET, domain=DOMAIN))


def put_last(model: ir.Model) -> None:
    """Moves the nodes, and what follows from them alone, behind all others.

    ONNX Runtime walks from the last output to the first inputs, and of several inputs takes the one
    whose node stands last. So a layer's share is added before the next layer runs; the other way
    round, the queries and keys of all layers would wait in memory.
    """
    moved = [node for node in model.graph if node.op_type == OP_TYPE]
    for node in moved:  # grows
        users = (use.node for output in node.outputs for use in output.uses())
        moved += [user for user in users if user not in moved]
    order = {node: place for place, node in enumerate(model.graph)}
    moved.sort(key=order.__getitem__)
    model.graph.remove(moved)
    model.graph.extend(moved)
