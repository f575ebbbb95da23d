"""The formats that can be built, by name."""

from collections.abc import Sequence

from exporter.errors import ExportError
from exporter.formats.aoti import AOTI, AOTI_CUDA
from exporter.formats.format import Format
from exporter.formats.onnx import ONNX, ONNX_CUDA, ONNX_INT8
from exporter.formats.tensorrt import TENSORRT
from exporter.formats.torchscript import TORCHSCRIPT

FORMATS: dict[str, Format] = {
    known.name: known
    for known in (TORCHSCRIPT, ONNX, AOTI, ONNX_INT8, ONNX_CUDA, AOTI_CUDA, TENSORRT)
}


def chosen(names: Sequence[str]) -> list[Format]:
    """The formats of these names, each once.

    Raises:
        ExportError: one is unknown, or there is none.
    """
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise ExportError(f"targets must be of {', '.join(FORMATS)}, got {unknown or 'none'}")
    return [FORMATS[name] for name in dict.fromkeys(names)]
