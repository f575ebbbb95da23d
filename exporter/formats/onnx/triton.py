"""``model.onnx`` for Triton: an artifact's graph that takes ``seqlens`` and computes the rest."""

from pathlib import Path

import onnx
import onnx.parser

from exporter.publish import link_or_copy
from runtime.engines.onnx.cuda import kernel_options

FILE_NAME = "model.onnx"

# What Triton's batcher cannot make: its batch inputs are lengths, and int32 or float32 alone.
_BOUNDS = """
bounds (int32[N] seqlens) => (int32[M] cu_seqlens, int64 max_seqlen)
{
  bounds_first = Constant <value = int32[1] {0}> ()
  bounds_axis = Constant <value = int64 {0}> ()
  bounds_ends = CumSum (seqlens, bounds_axis)
  cu_seqlens = Concat <axis = 0> (bounds_first, bounds_ends)
  bounds_longest = ReduceMax <keepdims = 0> (seqlens)
  max_seqlen = Cast <to = 7> (bounds_longest)
}
"""


def write(source: Path, folder: Path) -> None:
    """Writes the graph with the inputs ``input_ids`` [T] int64 and ``seqlens`` [N] int32.

    Args:
        source: a graph of an artifact, with ``cu_seqlens`` and ``max_seqlen`` for ``seqlens``.
        folder: where it goes, with links to the files that hold its weights.
    """
    model = onnx.load(source, load_external_data=False)
    bounds = onnx.parser.parse_graph(_BOUNDS)
    computed = {output.name for output in bounds.output}
    inputs = [value for value in model.graph.input if value.name not in computed]
    nodes = [*bounds.node, *model.graph.node]
    del model.graph.input[:], model.graph.node[:]
    model.graph.input.extend([*inputs, *bounds.input])
    model.graph.node.extend(nodes)
    onnx.save(model, folder / FILE_NAME)
    for name in _weights_files(model):
        link_or_copy(source.parent / name, folder / name)


def cuda_options() -> dict[str, str]:
    """Of ONNX Runtime's CUDA provider, as ``runtime`` sets them."""
    return {"use_tf32": "0", **kernel_options("auto")}


def _weights_files(model: onnx.ModelProto) -> set[str]:
    return {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
