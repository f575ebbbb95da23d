"""One module per format, each with ``export(packed, folder) -> EngineEntry``.

Only ``tensorrt`` takes more: which plans to build (``exporter.targets.plan_options``).

``weights.safetensors`` lies in ``folder`` already; an engine file refers to it.
"""

import importlib
from collections.abc import Callable

from exporter.native import ONNXRUNTIME_LIBRARY, TORCH_LIBRARY
from runtime.manifest import EngineEntry

TARGETS = {
    "torchscript": "exporter.targets.torchscript",
    "onnx": "exporter.targets.onnx",
    "aoti": "exporter.targets.aoti",
    "onnx-int8": "exporter.targets.onnx_int8",
    "onnx-cuda": "exporter.targets.onnx_cuda",
    "aoti-cuda": "exporter.targets.aoti_cuda",
    "tensorrt": "exporter.targets.tensorrt",
}

# The native attention op that each loads; none for the kernels of ONNX Runtime.
OP_LIBRARIES = {
    "torchscript": TORCH_LIBRARY,
    "onnx": ONNXRUNTIME_LIBRARY,
    "aoti": TORCH_LIBRARY,
    "onnx-int8": ONNXRUNTIME_LIBRARY,
    "aoti-cuda": TORCH_LIBRARY,
}


def exporter_of(target: str) -> Callable[..., EngineEntry]:
    """The ``export`` function of a target; its libraries are imported now."""
    export: Callable[..., EngineEntry] = importlib.import_module(TARGETS[target]).export
    return export
