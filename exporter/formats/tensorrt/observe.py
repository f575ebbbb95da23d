"""What TensorRT's graph gives its attention: the grid by which it pads, and lengths."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from exporter.formats.format import Observed
from exporter.formats.onnx.observe import evaluate, positions_of
from exporter.formats.tensorrt import TENSORRT
from exporter.formats.tensorrt.names import LENGTHS, tensor_name
from runtime.manifest_schema import Manifest
from runtime.packing import PackedBatch


@contextmanager
def observe(folder: Path, manifest: Manifest, batch: PackedBatch) -> Iterator[Observed]:
    """See ``Format.observe``."""
    file = manifest.engines[TENSORRT.name].file
    model = onnx.load(folder / file, load_external_data=False)
    positions = positions_of(model)
    padded = _padded_attentions(model)
    values = evaluate(model, [*positions, *(name for names in padded for name in names)], batch)
    yield Observed(
        positions=[values[name] for name in positions],
        calls=[
            ([0, *values[lengths].cumsum().tolist()], values[sources].shape[1])
            for sources, _, lengths in padded
        ],
        grids=[
            (values[sources], values[cells])
            for sources, cells in dict.fromkeys(names[:2] for names in padded)
        ],
    )


def _padded_attentions(model: onnx.ModelProto) -> list[tuple[str, str, str]]:
    """Of each attention on padded proteins: the names of its sources, cells and lengths."""
    gathers = [node for node in model.graph.node if node.op_type == "Gather"]
    by_rows = {node.input[0]: node.input[1] for node in gathers}
    by_output = {node.output[0]: node.input[1] for node in gathers}
    found: list[tuple[str, str, str]] = []
    while (q := tensor_name(len(found), "q")) in by_rows:
        found.append((by_rows[q], by_output[tensor_name(len(found), "out")], LENGTHS))
    return found
