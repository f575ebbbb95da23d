"""The graph for ONNX Runtime on CUDA, on a CPU: its packed attention becomes standard ops."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from exporter.formats.format import StandIn
from exporter.formats.onnx import ONNX_CUDA
from exporter.formats.onnx.attention import ONNX_DTYPES
from exporter.formats.onnx.packed_attention import without_vendor_ops
from exporter.formats.stand_in import running_as_onnx
from runtime.manifest_schema import Manifest


@contextmanager
def stand_in(folder: Path, manifest: Manifest) -> Iterator[StandIn]:
    """See ``Format.stand_in``. Every other node, and the weights, are the engine's own."""
    name, shape = ONNX_CUDA.name, manifest.architecture
    model = onnx.load(folder / manifest.engines[name].file, load_external_data=False)
    without_vendor_ops(model, ONNX_DTYPES[manifest.dtype], shape.num_heads, shape.head_dim)
    with running_as_onnx(folder, manifest, name, model) as found:
        yield found
