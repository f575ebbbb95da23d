"""One module per format, each with ``export(packed, folder) -> EngineEntry``.

``weights.safetensors`` lies in ``folder`` already; an engine file refers to it.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

from exporter.packed_forward import PackedESM2
from runtime.manifest import EngineEntry

TARGETS = {
    "torchscript": "exporter.targets.torchscript",
    "onnx": "exporter.targets.onnx",
    "onnx-int8": "exporter.targets.onnx_int8",
}


def exporter_of(target: str) -> Callable[[PackedESM2, Path], EngineEntry]:
    """The ``export`` function of a target; its libraries are imported now."""
    export: Callable[[PackedESM2, Path], EngineEntry] = importlib.import_module(
        TARGETS[target]
    ).export
    return export
