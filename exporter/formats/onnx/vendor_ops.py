"""ONNX Runtime's fused kernels for CUDA in place of what lies between linears and attention.

Each passes over the card's memory once where the standard ops pass three to seven times. Source:
ONNX Runtime, docs/ContribOperators.md. A rule names just the standard ops that its kernel computes,
with their attributes; what is anything else stays as it is.

``BiasGelu`` is not among them: its GELU is in float16, with five times the rounding that the gate
allows (onnxruntime-gpu 1.31.1, H100).
"""

from typing import Any

import onnx
import onnx.parser
import onnx_ir as ir
from onnx import FunctionProto
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.pattern import RewriteRule

from exporter.formats.onnx.attention import DOMAIN, OPSET

VENDOR = "com.microsoft"
# RotaryEmbedding takes a block of threads for each token and head: on an H100, 65,536 tokens of 20
# heads, 1.3 ms whatever the head dim, where standard ops take 1.8 ms for 64 and 0.5 ms for 16.
ROTARY_FROM = 64
SKIP_NORM = "SkipLayerNormalization"
_LINEAR = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}

# Each kernel in standard ops, to run the graph where there is no CUDA.
_REFERENCES = (
    """
SkipLayerNormalization <epsilon> (x, skip, gamma, beta, bias) => (out, mean, inv_std, sum)
{{
  biased = Add(x, bias)
  sum = Add(biased, skip)
  out, mean, inv_std = LayerNormalization <axis = -1, epsilon: float = @epsilon>
    (sum, gamma, beta)
}}
""",
    # x: [1, T, H * D]; cos and sin: [T, D / 2].
    """
RotaryEmbedding <num_heads> (x, position, cos, sin) => (out)
{{
  heads = Constant <value = int64[4] {{1, -1, {num_heads}, {head_dim}}}> ()
  middle = Constant <value = int64[1] {{1}}> ()
  cos_of_heads = Unsqueeze(cos, middle)
  sin_of_heads = Unsqueeze(sin, middle)
  x_heads = Reshape(x, heads)
  first, second = Split <axis = -1, num_outputs = 2> (x_heads)
  first_cos = Mul(first, cos_of_heads)
  second_sin = Mul(second, sin_of_heads)
  second_cos = Mul(second, cos_of_heads)
  first_sin = Mul(first, sin_of_heads)
  rotated_first = Sub(first_cos, second_sin)
  rotated_second = Add(second_cos, first_sin)
  rotated = Concat <axis = -1> (rotated_first, rotated_second)
  shape = Shape(x)
  out = Reshape(rotated, shape)
}}
""",
)


def fuse(model: ir.Model, num_heads: int, head_dim: int) -> ir.Model:
    """Uses the kernels wherever they compute the same.

    Args:
        model: after ``share_rotary_tables``.
        num_heads: H.
        head_dim: D.
    """
    rules = [RewriteRule(_norm_of_sum, _skip_norm)]
    if head_dim >= ROTARY_FROM:
        heads = _Rotary(num_heads, head_dim)
        rules += [
            RewriteRule(heads.in_float32, heads.fused, heads.has_half_tables),
            RewriteRule(heads.in_half, heads.fused_in_half, heads.has_half_tables),
        ]
    fused = rewrite(model, rules)
    for node in fused.graph:
        if node.op_type == SKIP_NORM:
            for output in node.outputs[1:3]:  # mean and deviation, which the kernel leaves out
                output.name = ""
    return fused


def reference_functions(num_heads: int, head_dim: int) -> list[FunctionProto]:
    """The kernels as model-local functions of our own domain."""
    head = f'<opset_import: ["" : {OPSET}], domain: "{DOMAIN}">'
    return [
        onnx.parser.parse_function(head + text.format(num_heads=num_heads, head_dim=head_dim))
        for text in _REFERENCES
    ]


def _norm_of_sum(
    op: Any, x: Any, weight: Any, bias: Any, skip: Any, gamma: Any, beta: Any, epsilon: Any
) -> Any:
    total = op.Add(skip, op.Gemm(x, weight, bias, **_LINEAR))
    return total, op.LayerNormalization(total, gamma, beta, axis=-1, stash_type=1, epsilon=epsilon)


def _skip_norm(
    op: Any, x: Any, weight: Any, bias: Any, skip: Any, gamma: Any, beta: Any, epsilon: Any
) -> Any:
    """Both the normed sum and the sum, which the layers after it read."""
    normed, _, _, total = op.SkipLayerNormalization(
        op.Gemm(x, weight, **_LINEAR), skip, gamma, beta, bias,
        epsilon=epsilon, _domain=VENDOR, _outputs=4,
    )  # fmt: skip
    return total, normed


class _Rotary:
    """``x * cos + cat(second half of x, first half of x) * sin``, cos and sin ``[T, 1, D]``."""

    def __init__(self, num_heads: int, head_dim: int):
        self._num_heads, self._head_dim = num_heads, head_dim

    def in_float32(self, op: Any, x: Any, cos: Any, sin: Any) -> Any:
        first, second = op.Split(x, axis=2, num_outputs=2, _outputs=2)
        swapped = op.Concat(second, first, axis=-1)
        return op.Add(op.Mul(x, cos), op.Mul(swapped, sin))

    def in_half(self, op: Any, x: Any, cos: Any, sin: Any) -> Any:
        first, second = op.Split(x, axis=2, num_outputs=2, _outputs=2)
        swapped = op.Cast(op.Concat(second, first, axis=-1), to=ir.DataType.FLOAT)
        wide = op.Cast(x, to=ir.DataType.FLOAT)
        total = op.Add(op.Mul(wide, cos), op.Mul(swapped, sin))
        return op.Cast(total, to=ir.DataType.FLOAT16)

    def has_half_tables(self, _: Any, cos: Any, sin: Any, **others: Any) -> bool:
        """Whether both halves of cos are one tensor, and those of sin but for the sign."""
        return _halves(cos, sin) is not None

    def fused(self, op: Any, x: Any, cos: Any, sin: Any) -> Any:
        heads = op.Constant(value_ints=[-1, self._num_heads, self._head_dim])
        return op.Reshape(self._rotated(op, self._flat(op, x), cos, sin), heads)

    def fused_in_half(self, op: Any, x: Any, cos: Any, sin: Any) -> Any:
        """In float32 all the same."""
        heads = op.Constant(value_ints=[-1, self._num_heads, self._head_dim])
        wide = op.Cast(self._flat(op, x), to=ir.DataType.FLOAT)
        rotated = op.Cast(self._rotated(op, wide, cos, sin), to=ir.DataType.FLOAT16)
        return op.Reshape(rotated, heads)

    def _flat(self, op: Any, x: Any) -> Any:
        return op.Reshape(x, op.Constant(value_ints=[1, -1, self._num_heads * self._head_dim]))

    def _rotated(self, op: Any, x: Any, cos: Any, sin: Any) -> Any:
        halves = _halves(cos, sin)
        assert halves is not None
        middle = op.Constant(value_ints=[1])
        return op.RotaryEmbedding(
            x, op.Constant(value_ints=[0]), *(op.Squeeze(half, middle) for half in halves),
            num_heads=self._num_heads, _domain=VENDOR,
        )  # fmt: skip


def _halves(cos: ir.Value, sin: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    of_cos, of_sin = cos.producer(), sin.producer()
    if of_cos is None or of_sin is None or {of_cos.op_type, of_sin.op_type} != {"Concat"}:
        return None
    first, second = of_cos.inputs
    minus, half = of_sin.inputs
    negation = minus.producer() if minus is not None else None
    if first is None or first is not second or half is None or negation is None:
        return None
    return (first, half) if negation.op_type == "Neg" and negation.inputs == (half,) else None
