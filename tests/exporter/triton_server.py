"""Triton's part in serving a model, done from the model's ``config.pbtxt`` alone.

Nothing here knows this project's names or shapes. What it does is what Triton's sources do:
core/src/model_config_utils.cc (requests against dims), backend/src/backend_input_collector.cc
(ragged inputs, batch inputs), backend/src/backend_output_responder.cc (outputs), and what
onnxruntime_backend and pytorch_backend check of the model file when they load it.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import torch
from google.protobuf import text_format
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]

DTYPES = {
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
}
ONNX_TYPES = {"tensor(int32)": np.int32, "tensor(int64)": np.int64,
              "tensor(float16)": np.float16, "tensor(float)": np.float32}  # fmt: skip


class RefusedError(Exception):
    """Triton would not load this model, or would not run this batch."""


def _published_schema() -> ModuleType:
    """``model_config_pb2`` as NVIDIA publishes it in ``tritonclient``.

    By its path: importing it by its name imports grpc, which nothing here needs.
    """
    package = importlib.util.find_spec("tritonclient")
    assert package is not None and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCHEMA: Any = _published_schema()


def read_config(model: Path) -> Any:
    """The ``ModelConfig`` of a model's folder; raises where it does not follow the schema."""
    config = text_format.Parse((model / "config.pbtxt").read_text(), SCHEMA.ModelConfig())
    require(config.name == model.name, f"{config.name!r} is not the name of the folder")
    return config


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise RefusedError(otherwise)


def dtype_of(tensor: Any) -> type:
    return DTYPES[SCHEMA.DataType.Name(tensor.data_type)]


def batch_inputs_of(config: Any) -> dict[str, Any]:
    return {name: batch for batch in config.batch_input for name in batch.target_name}


def batch_outputs_of(config: Any) -> dict[str, Any]:
    return {name: batch for batch in config.batch_output for name in batch.target_name}


class OnnxRuntimeBackend:
    """As ``onnxruntime_backend``: the model file against the config, then runs."""

    def __init__(self, model: Path, config: Any):
        options = onnxruntime.SessionOptions()
        folder = model / "1"
        for library in config.model_operations.op_library_filename:
            options.register_custom_ops_library(str(folder / library))
        file = folder / (config.default_model_filename or "model.onnx")
        self.session = onnxruntime.InferenceSession(file, options)
        inputs = {x.name: x for x in self.session.get_inputs()}
        declared = {x.name: x for x in config.input} | batch_inputs_of(config)
        require(set(inputs) == set(declared), f"inputs {set(inputs)}, config {set(declared)}")
        for name, tensor in declared.items():
            found = ONNX_TYPES[inputs[name].type]
            require(found == dtype_of(tensor), f"{name} is {found}")
        for tensor in config.input:
            shape = _with_wildcards(inputs[tensor.name].shape)
            if tensor.allow_ragged_batch:
                require(shape == [-1], f"ragged {tensor.name} is {shape}, not [-1]")
            else:
                require(shape == [-1, *tensor.dims], f"{tensor.name} is {shape}")
        outputs = {x.name: x for x in self.session.get_outputs()}
        self.names = [x.name for x in config.output]
        require(set(self.names) <= set(outputs), f"outputs {set(outputs)}, config {self.names}")
        for tensor in config.output:
            found = ONNX_TYPES[outputs[tensor.name].type]
            require(found == dtype_of(tensor), f"{tensor.name} is {found}")
            shape = _with_wildcards(outputs[tensor.name].shape)
            if tensor.name not in batch_outputs_of(config):
                require(shape == [-1, *tensor.dims], f"{tensor.name} is {shape}")

    def __call__(self, tensors: Tensors) -> Tensors:
        try:
            outputs = self.session.run(self.names, tensors)
        except Exception as error:  # onnxruntime raises a class of its own for each status code
            raise RefusedError(str(error)) from error
        return dict(zip(self.names, outputs, strict=True))


class PyTorchBackend:
    """As ``pytorch_backend``: inputs by the names of forward, outputs by their place."""

    def __init__(self, model: Path, config: Any):
        self.config = config
        self.module = torch.jit.load(model / "1" / (config.default_model_filename or "model.pt"))
        arguments = self.module.forward.schema.arguments[1:]
        require(all(str(x.type) == "Tensor" for x in arguments), "not all inputs are tensors")
        self.inputs = [x.name for x in arguments]
        declared = {x.name for x in config.input} | set(batch_inputs_of(config))
        require(set(self.inputs) == declared, f"inputs {self.inputs}, config {declared}")
        require(not any("__" in x.name for x in config.output), "an output is named by its index")

    def __call__(self, tensors: Tensors) -> Tensors:
        off = self.config.parameters["DISABLE_OPTIMIZED_EXECUTION"].string_value == "true"
        arguments = [torch.from_numpy(tensors[name]) for name in self.inputs]
        try:
            with torch.inference_mode(), torch.jit.optimized_execution(not off):
                outputs = self.module(*arguments)
        except RuntimeError as error:
            raise RefusedError(str(error)) from error
        require(len(outputs) >= len(self.config.output), f"the model has {len(outputs)} outputs")
        found = {}
        for tensor, values in zip(self.config.output, outputs, strict=False):
            found[tensor.name] = values.contiguous().numpy()
            require(found[tensor.name].dtype == dtype_of(tensor), f"{tensor.name}: wrong dtype")
        return found


BACKENDS: dict[str, Callable[[Path, Any], Callable[[Tensors], Tensors]]] = {
    "onnxruntime": OnnxRuntimeBackend,
    "pytorch": PyTorchBackend,
}


def serve(
    config: Any, backend: Callable[[Tensors], Tensors], requests: Sequence[Tensors]
) -> list[Tensors]:
    """One dynamic batch: what each request is answered."""
    for request in requests:
        _check_request(config, request)
    batch = sum(_batch_size(config, request) for request in requests)
    require(batch <= config.max_batch_size, f"a batch of {batch}")
    return _responses(config, requests, backend(_collect(config, requests)))


def _check_request(config: Any, request: Tensors) -> None:
    require(set(request) == {x.name for x in config.input}, f"a request of {set(request)}")
    for tensor in config.input:
        values = request[tensor.name]
        require(values.dtype == dtype_of(tensor), f"{tensor.name} is {values.dtype}")
        shape = list(values.shape[1:] if config.max_batch_size else values.shape)
        fits = len(shape) == len(tensor.dims) and all(
            wanted in (-1, size) for wanted, size in zip(tensor.dims, shape, strict=True)
        )
        require(fits, f"{tensor.name} has shape {shape}, config {list(tensor.dims)}")


def _batch_size(config: Any, request: Tensors) -> int:
    return len(request[config.input[0].name])


def _collect(config: Any, requests: Sequence[Tensors]) -> Tensors:
    tensors: Tensors = {}
    for tensor in config.input:
        arrays = [request[tensor.name] for request in requests]
        if tensor.allow_ragged_batch:
            tensors[tensor.name] = np.concatenate([array.ravel() for array in arrays])
        else:
            shapes = {array.shape[1:] for array in arrays}
            require(len(shapes) == 1, f"{tensor.name} of shapes {shapes} shares no batch")
            tensors[tensor.name] = np.concatenate(arrays)
    for name, batch in batch_inputs_of(config).items():
        (source,) = batch.source_input
        require(source in tensors, f"unknown source input {source!r}")
        arrays = [request[source] for request in requests]
        values = _COUNTS[SCHEMA.BatchInput.Kind.Name(batch.kind)](arrays)
        require(dtype_of(batch) in (np.int32, np.float32), "batch inputs are INT32 or FP32")
        tensors[name] = np.array(values, dtype_of(batch))
    return tensors


def _accumulated(arrays: list[NDArray[Any]]) -> list[int]:
    return np.cumsum([array.size for array in arrays]).tolist()


def _item_shapes(arrays: list[NDArray[Any]]) -> list[tuple[int, ...]]:
    return [array.shape[1:] for array in arrays for _ in range(len(array))]


_COUNTS: dict[str, Callable[[list[NDArray[Any]]], Any]] = {
    "BATCH_ELEMENT_COUNT": lambda arrays: [array.size for array in arrays],
    "BATCH_ACCUMULATED_ELEMENT_COUNT": _accumulated,
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO": lambda arrays: [0, *_accumulated(arrays)],
    "BATCH_ITEM_SHAPE": _item_shapes,
    "BATCH_ITEM_SHAPE_FLATTEN": lambda arrays: np.concatenate(_item_shapes(arrays)),
}


def _responses(config: Any, requests: Sequence[Tensors], outputs: Tensors) -> list[Tensors]:
    scattered = batch_outputs_of(config)
    responses: list[Tensors] = [{} for _ in requests]
    for tensor in config.output:
        values = outputs[tensor.name]
        flat, taken = values.ravel(), 0
        for request, response in zip(requests, responses, strict=True):
            if tensor.name in scattered:
                (source,) = scattered[tensor.name].source_input
                known = request[source].shape
                wanted = [-1, *tensor.dims]
                require(
                    all(size != -1 or i < len(known) for i, size in enumerate(wanted)),
                    f"{tensor.name} has more unknown dimensions than {source}",
                )
                shape = [known[i] if size == -1 else size for i, size in enumerate(wanted)]
            else:
                shape = [_batch_size(config, request), *values.shape[1:]]
            end = taken + int(np.prod(shape))
            require(end <= flat.size, f"{tensor.name} has too few values to split")
            response[tensor.name] = flat[taken:end].reshape(shape)
            taken = end
    return responses


def _with_wildcards(shape: list[Any]) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in shape]
