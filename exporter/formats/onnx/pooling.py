"""``pooling.ort-cuda.onnx``: pools rows where they are, for ``onnx-cuda``.

A graph of its own, since ONNX Runtime computes every output of a graph, whichever are asked for.
"""

from pathlib import Path

import onnx
import onnx.parser

from exporter.formats.onnx.attention import OPSET

FILE_NAME = "pooling.ort-cuda.onnx"
# Which rows are whose, the runtime says (``runtime.engines.onnx.on_card``); the last slot is of
# rows that no protein takes in. Sums are in float64, as in ``runtime.pooling``.
_GRAPH = """
<ir_version: 10, opset_import: ["" : {opset}]>
pooling ({dtype}[T, E] rows, int32[T] slots, double[M, 1] counts) => ({dtype}[N, E] pooled)
{{
  zero = Constant <value = int64[1] {{0}}> ()
  one = Constant <value = int64[1] {{1}}> ()
  last = Constant <value = int64[1] {{-1}}> ()
  num_slots = Shape <start = 0, end = 1> (counts)
  width = Shape <start = 1, end = 2> (rows)
  shape_of_sums = Concat <axis = 0> (num_slots, width)
  none = ConstantOfShape <value = double[1] {{0.0}}> (shape_of_sums)
  wide = Cast <to = 11> (rows)
  shape = Shape(rows)
  column = Unsqueeze(slots, one)
  places = Expand(column, shape)
  sums = ScatterElements <axis = 0, reduction = "add"> (none, places, wide)
  means = Div(sums, counts)
  of_proteins = Slice(means, zero, last)
  pooled = Cast <to = {onnx_dtype}> (of_proteins)
}}
"""


def write(folder: Path, onnx_dtype: int) -> None:
    """Writes it for rows of this ``onnx.TensorProto`` data type, float32 or float16."""
    dtype = onnx.TensorProto.DataType.Name(onnx_dtype).lower()
    text = _GRAPH.format(opset=OPSET, dtype=dtype, onnx_dtype=onnx_dtype)
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / FILE_NAME)
