"""``esm2::VarlenAttention`` for ONNX: its schema, and a body of standard ONNX ops.

The body is a model-local function: a runtime that knows no kernel for the node inlines it. A native
kernel registered for the node takes precedence.
"""

import onnx
import onnx.parser
from onnx.defs import OpSchema

DOMAIN, OP_TYPE, VERSION = "esm2", "VarlenAttention", 1
# What may stand in its place: with rotary before it (``fusion``), and ONNX Runtime's own for CUDA
# (``packed_attention``).
ROTARY_OP_TYPE = "VarlenRotaryAttention"
PACKED_OP_TYPE = "PackedMultiHeadAttention"
# The first opset with Attention.
OPSET = 23

# Rows of queries that attend at once: bounds the scores to H x 1024 x L, whatever the protein.
QUERY_BLOCK = 1024

# One iteration is one block of queries of one protein; nearly always the whole protein.
# Alternatives and their speeds: docs/decisions.md, 2026-11-21. softmax_precision 1 is float32.
# Casts to the dtype that a tensor has already are removed when a model is loaded.
_BODY = """
<opset_import: ["" : {opset}], domain: "esm2">
VarlenAttention <softmax_scale> (q, k, v, cu_seqlens, max_seqlen) => (out)
{{
  zero = Constant <value = int64[1] {{0}}> ()
  one = Constant <value = int64[1] {{1}}> ()
  last = Constant <value = int64[1] {{-1}}> ()
  all = Constant <value = int64[1] {{9223372036854775807}}> ()
  block = Constant <value = int64[1] {{{query_block}}}> ()
  flat = Constant <value = int64[3] {{1, -1, {width}}}> ()
  go_on = Constant <value = bool {{1}}> ()

  bounds = Cast <to = 7> (cu_seqlens)
  starts = Slice(bounds, zero, last, zero)
  ends = Slice(bounds, one, all, zero)
  lengths = Sub(ends, starts)
  lengths_less_one = Sub(lengths, one)
  blocks_less_one = Div(lengths_less_one, block)
  blocks = Add(blocks_less_one, one)
  num_blocks = ReduceSum <keepdims = 0> (blocks)

  wide_q = Cast <to = {attended_dtype}> (q)
  wide_k = Cast <to = {attended_dtype}> (k)
  wide_v = Cast <to = {attended_dtype}> (v)
  flat_q = Reshape(wide_q, flat)
  flat_k = Reshape(wide_k, flat)
  flat_v = Reshape(wide_v, flat)
  none = SequenceEmpty <dtype: int = {attended_dtype}> ()
  last_protein, last_row, attended = Loop (num_blocks, go_on, zero, zero, none) <body = query_block
    (int64 i, bool go_on_in, int64[1] protein, int64[1] q_start, seq({type_name}) so_far)
    => (bool go_on_out, int64[1] protein_out, int64[1] q_end, seq({type_name}) with_this) {{
      go_on_out = Identity(go_on_in)
      next_protein = Add(protein, one)
      start = Gather(bounds, protein)
      end = Gather(bounds, next_protein)
      q_full = Add(q_start, block)
      q_end = Min(q_full, end)
      is_last_block = Equal(q_end, end)
      advance = Cast <to = 7> (is_last_block)
      protein_out = Add(protein, advance)
      q_rows = Slice(flat_q, q_start, q_end, one)
      k_rows = Slice(flat_k, start, end, one)
      v_rows = Slice(flat_v, start, end, one)
      rows = Attention <q_num_heads = {num_heads}, kv_num_heads = {num_heads},
        scale: float = @softmax_scale, softmax_precision = 1> (q_rows, k_rows, v_rows)
      with_this = SequenceInsert(so_far, rows)
  }}>
  wide_rows = ConcatFromSequence <axis = 1> (attended)
  all_rows = Cast <to = {onnx_dtype}> (wide_rows)
  shape = Shape(q)
  out = Reshape(all_rows, shape)
}}
"""

# By the names of the manifest.
ONNX_DTYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
}

# ONNX has no sequences of bfloat16, so that attends in float32.
_ATTENDED: dict[int, tuple[int, str]] = {
    onnx.TensorProto.FLOAT: (onnx.TensorProto.FLOAT, "float"),
    onnx.TensorProto.FLOAT16: (onnx.TensorProto.FLOAT16, "float16"),
    onnx.TensorProto.BFLOAT16: (onnx.TensorProto.FLOAT, "float"),
}


def register_schema() -> None:
    """Makes ``esm2::VarlenAttention`` known, see ``register_op``."""
    inputs = {
        "q": ("T", "[T, H, D] after rotary"),
        "k": ("T", "[T, H, D] after rotary"),
        "v": ("T", "[T, H, D]"),
        "cu_seqlens": ("tensor(int32)", "[N + 1]"),
        "max_seqlen": ("tensor(int64)", "0-dim"),
    }
    register_op(OP_TYPE, inputs, ("T", "[T, H, D]"))


def register_op(op_type: str, inputs: dict[str, tuple[str, str]], output: tuple[str, str]) -> None:
    """Makes a node known to the ONNX checker and to the exporter; harmless when repeated.

    Args:
        op_type: in our domain, with the attribute ``softmax_scale``.
        inputs: by name, their type and shape; T is the type of queries and keys.
        output: the same of ``out``.
    """
    if onnx.defs.has(op_type, DOMAIN):
        return
    tensor = OpSchema.FormalParameter
    onnx.defs.register_schema(
        OpSchema(
            op_type,
            DOMAIN,
            VERSION,
            inputs=[tensor(name, *of) for name, of in inputs.items()],
            outputs=[tensor("out", *output)],
            type_constraints=[
                ("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "of q and k")
            ],
            attributes=[
                OpSchema.Attribute("softmax_scale", OpSchema.AttrType.FLOAT, "", required=True)
            ],
        )
    )


def attention_function(onnx_dtype: int, num_heads: int, head_dim: int) -> onnx.FunctionProto:
    """The function's body for q, k, v of this ``onnx.TensorProto`` data type and ``[T, H, D]``."""
    attended_dtype, type_name = _ATTENDED[onnx_dtype]
    text = _BODY.format(
        opset=OPSET,
        onnx_dtype=onnx_dtype,
        attended_dtype=attended_dtype,
        type_name=type_name,
        query_block=QUERY_BLOCK,
        num_heads=num_heads,
        width=num_heads * head_dim,
    )
    return onnx.parser.parse_function(text)
