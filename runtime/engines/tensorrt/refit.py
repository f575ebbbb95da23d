"""The weights of a plan without any, from ``weights.safetensors``."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.engines.tensorrt.library import first_error
from runtime.errors import EngineError
from runtime.weights import read_places


def refit(trt: Any, logger: Any, engine: Any, path: Path, graph: Path) -> None:
    """Gives an ``ICudaEngine`` the weights that it was built from.

    It takes no others: it was built with ``REFIT_IDENTICAL``. That they are the same, the digests
    of the manifest say, which ``runtime.load`` checks.

    Args:
        trt: the library, ``tensorrt`` or ``tensorrt_rtx``.
        logger: of ``collecting_logger``.
        engine: of a plan without weights.
        path: of ``weights.safetensors``, which is mapped.
        graph: of ``model.trt.onnx``, for constants that are in no other file.

    Raises:
        EngineError: the engine asks for weights that the file does not hold, or refuses one.
    """
    dtypes = {"F32": trt.float32, "F16": trt.float16, "BF16": trt.bfloat16}
    stored = read_places(path)
    mapped: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
    refitter = trt.Refitter(engine, logger)
    for name in refitter.get_all_weights():
        if name not in stored:
            continue  # get_missing_weights tells whether it was needed
        place = stored[name]
        address = mapped.ctypes.data + place.offset
        weights = trt.Weights(dtypes[place.dtype], address, int(np.prod(place.shape)))
        if not refitter.set_named_weights(name, weights):
            raise EngineError(f"cannot refit {name} from {path}: {first_error(logger)}")
    if refitter.get_missing_weights():
        trt.OnnxParserRefitter(refitter, logger).refit_from_file(str(graph))
    if missing := refitter.get_missing_weights():
        raise EngineError(
            f"the plan needs {', '.join(missing[:3])}, {path} does not hold them. Export again"
        )
    if not refitter.refit_cuda_engine():
        raise EngineError(f"cannot refit the plan from {path}: {first_error(logger)}")
