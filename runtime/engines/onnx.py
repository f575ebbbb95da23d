"""ONNX Runtime: ``model.onnx`` with its weights memory-mapped from ``weights.safetensors``."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np

from runtime import instructions
from runtime.engine import Attention, EngineSpec, Outputs, Threads
from runtime.errors import EngineError, UnsupportedError
from runtime.manifest import EngineEntry, Manifest
from runtime.packing import PackedBatch

logger = logging.getLogger(__name__)

FUNCTION = "standard (model-local function)"


def reason_against(entry: EngineEntry, device: str) -> str | None:
    """Why "auto" should take another engine, in a sentence, or None."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed (pip install 'esm2-engines[onnx]')"
    return None


def load(
    folder: Path, manifest: Manifest, device: str, attention: Attention, threads: Threads,
    name: str = "onnx",
) -> "OnnxEngine":  # fmt: skip
    """See ``runtime.load``. Standard attention is the graph's own function."""
    entry = manifest.engines[name]
    if reason := reason_against(entry, device):
        raise UnsupportedError(f"cannot load engine {name!r} of {manifest.name!r}: {reason}")
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if device == "auto":
        device = "cuda" if "CUDAExecutionProvider" in available else "cpu"
    if device == "cuda" and "CUDAExecutionProvider" not in available:
        raise UnsupportedError(
            f"cannot load engine 'onnx' on cuda: this onnxruntime has {', '.join(available)}. "
            "pip install 'esm2-engines[onnx-gpu]', or take device 'cpu'"
        )
    if device == "cpu" and manifest.dtype == "bfloat16":
        raise UnsupportedError(
            f"cannot load engine {name!r} of {manifest.name!r} on cpu: onnxruntime has no bfloat16 "
            "kernels for CPUs. Take a float32 artifact, the engine 'torchscript', or a GPU"
        )
    # TF32, onnxruntime's default on CUDA, would cost the float32 budget a thousandfold.
    cuda = [("CUDAExecutionProvider", {"use_tf32": "0"})] if device == "cuda" else []
    providers = [*cuda, "CPUExecutionProvider"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads.per_pack
    kernel = FUNCTION
    if device == "cpu" and attention == "auto" and entry.op_library is not None:
        kernel = _register_native(options, folder / entry.op_library)
    path = folder / entry.file
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime raises a class of its own for each status code
        raise EngineError(
            f"cannot load {path}: {_first_line(error)} (built with "
            f"{entry.built_with}, here onnxruntime {onnxruntime.__version__})"
        ) from error
    if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise UnsupportedError(
            "cannot load engine 'onnx' on cuda: onnxruntime could not start its CUDA provider "
            "(no GPU, or another CUDA or cuDNN than it was built for). Take device 'cpu'"
        )
    spec = EngineSpec(
        format=name,
        artifact=manifest.name,
        device=device,
        dtype="int8" if entry.quantised else manifest.dtype,
        layers=tuple(manifest.layers),
        pool=manifest.pool,
        attention=kernel,
        library=f"onnxruntime {onnxruntime.__version__}",
        synthetic=manifest.weights.kind == "synthetic",
    )
    names = [output.name for output in manifest.signature.outputs]
    return OnnxEngine(session, spec, names, threads.concurrency if device == "cpu" else 1)


def _register_native(options: Any, library: Path) -> str:
    """Gives the session the native attention op; where it cannot, warns of what is lost."""
    try:
        options.register_custom_ops_library(str(library))
        return f"native ({instructions.of_library(library)})"
    except Exception as error:  # onnxruntime raises a class of its own for each status code
        logger.warning(
            "cannot load %s: %s. Attention runs in onnxruntime's own ops, which takes longer",
            library, _first_line(error),
        )  # fmt: skip
        return FUNCTION


class OnnxEngine:
    """An ``onnxruntime.InferenceSession`` that takes packs."""

    def __init__(self, session: Any, spec: EngineSpec, output_names: list[str], concurrency: int):
        self.spec = spec
        self.concurrency = concurrency
        self._session = session
        self._output_names = output_names

    def unsupported_reasons(self, batch: PackedBatch) -> list[str]:
        """See ``Engine``: every valid pack runs."""
        return []

    def run(self, batch: PackedBatch) -> Outputs:
        """See ``Engine.run``."""
        if self._session is None:
            raise EngineError("this engine is closed: load it again")
        feeds = {
            "input_ids": batch.input_ids,
            "cu_seqlens": batch.cu_seqlens,
            "max_seqlen": np.array(batch.max_seqlen, dtype=np.int64),
        }
        try:
            arrays = self._session.run(self._output_names, feeds)
        except Exception as error:  # see load
            raise EngineError(
                f"onnxruntime failed on a pack of {batch.num_proteins} proteins, "
                f"{batch.num_tokens} tokens: {_first_line(error)}"
            ) from error
        return Outputs.from_arrays(self._output_names, arrays)

    def close(self) -> None:
        """See ``Engine.close``."""
        self._session = None

    def __enter__(self) -> "OnnxEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
