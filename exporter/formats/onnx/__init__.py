"""ONNX: for any provider, for ONNX Runtime on CUDA, and in int8."""

from functools import partial

from exporter.formats.format import ONNXRUNTIME_LIBRARY, Format, TritonBackend, lazily

_ROOM = "exporter.formats.onnx"
_observe = lazily(f"{_ROOM}.observe:observe")
_write = lazily(f"{_ROOM}.triton:write")

ONNX = Format(
    name="onnx",
    export=lazily(f"{_ROOM}.export:export"),
    observe=partial(_observe, engine="onnx"),
    op_library=ONNXRUNTIME_LIBRARY,
    own_faults=lazily(f"{_ROOM}.contact_faults:contact_faults"),
    triton=TritonBackend("onnxruntime", _write),
)
ONNX_INT8 = Format(
    name="onnx-int8",
    export=lazily(f"{_ROOM}.int8:export"),
    observe=partial(_observe, engine="onnx-int8"),
    op_library=ONNXRUNTIME_LIBRARY,
    float32_twin="onnx",
    own_faults=lazily(f"{_ROOM}.int8_faults:own_faults"),
    triton=TritonBackend("onnxruntime", _write),
)
ONNX_CUDA = Format(
    name="onnx-cuda",
    export=lazily(f"{_ROOM}.cuda:export"),
    observe=partial(_observe, engine="onnx-cuda"),
    stand_in=lazily(f"{_ROOM}.stand_in:stand_in"),
    triton=TritonBackend("onnxruntime", _write, "KIND_GPU", lazily(f"{_ROOM}.triton:cuda_options")),
    without_contacts="ONNX Runtime has no kernel for them on CUDA",
)
