"""``model.ort-cuda.onnx``: the graph for ONNX Runtime on CUDA, with its packed attention kernel."""

from pathlib import Path

import onnx
import torch

from exporter.errors import ExportError
from exporter.formats.onnx import export as onnx_cpu
from exporter.formats.onnx import pooling
from exporter.formats.onnx.attention import PACKED_OP_TYPE
from exporter.formats.onnx.packed_attention import (
    share_rotary_tables,
    use_packed_attention,
)
from exporter.formats.onnx.vendor_ops import VENDOR, fuse
from exporter.model.packed_forward import PackedESM2
from runtime.manifest_schema import EngineEntry

FILE_NAME = "model.ort-cuda.onnx"
LOWERING = (
    f"{VENDOR}::{PACKED_OP_TYPE}, token_offset computed once in the graph; fused kernels for "
    "residual and LayerNorm, and for rotary of head dims from 64"
)


def export(packed: PackedESM2, folder: Path) -> EngineEntry:
    """Exports ``packed`` into ``folder``, where ``weights.safetensors`` lies already.

    Args:
        packed: on the CPU, in float32 or float16.
        folder: where ``model.ort-cuda.onnx`` and ``pooling.ort-cuda.onnx`` go.

    Raises:
        ExportError: ``packed`` is in bfloat16, which the kernel does not know.
    """
    if packed.embed_tokens.weight.dtype == torch.bfloat16:
        raise ExportError(
            "target onnx-cuda knows no bfloat16: ONNX Runtime's packed attention takes float32 and "
            "float16. Take --dtype float16, or leave onnx-cuda out of --target"
        )
    path = folder / FILE_NAME
    onnx.save(lower(packed, folder), path)
    # By path, so that the checker follows the external data.
    onnx.checker.check_model(path, full_check=True)
    pooling.write(folder, onnx_cpu.onnx_dtype(packed))
    return EngineEntry(
        file=FILE_NAME, lowering=LOWERING, built_with=onnx_cpu.built_with(),
        pooling=pooling.FILE_NAME,
    )  # fmt: skip


def lower(packed: PackedESM2, folder: Path) -> onnx.ModelProto:
    """The graph with its parameters left in ``weights.safetensors``."""
    model = onnx_cpu.export_graph(packed)
    share_rotary_tables(model)
    model = fuse(model, packed.num_heads, packed.head_dim)
    function = use_packed_attention(model, packed.num_heads, packed.head_dim)
    proto = onnx_cpu.finish(model, packed, folder)
    proto.functions.append(function)
    return proto
