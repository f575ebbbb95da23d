"""ONNX Runtime: ``model.onnx`` with its weights memory-mapped from ``weights.safetensors``."""

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime import instructions
from runtime.engine import EngineSpec, Outputs, Settings
from runtime.errors import EngineError, UnsupportedError
from runtime.manifest import EngineEntry, Manifest
from runtime.packing import PackedBatch
from runtime.pooling import Pool, check_pool, pool

logger = logging.getLogger(__name__)

# From 1.29 on, onnxruntime tells Microsoft the model's name, hashes and timings, unless this is set
# when it is first imported. ORT_DISABLE_TELEMETRY=0 in the environment lets it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

FUNCTION = "standard (model-local function)"


def reason_against(entry: EngineEntry, device: str) -> str | None:
    """Why "auto" should take another engine, in a sentence, or None."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed (pip install 'esm2-engines[onnx]')"
    return None


def load(
    folder: Path, manifest: Manifest, device: str, settings: Settings, name: str = "onnx"
) -> "OnnxEngine":
    """See ``runtime.load``. Standard attention is the graph's own function."""
    entry = manifest.engines[name]
    cannot = f"cannot load engine {name!r} of {manifest.name!r}"
    if reason := reason_against(entry, device):
        raise UnsupportedError(f"{cannot}: {reason}")
    if settings.attention not in ("auto", "standard"):
        raise UnsupportedError(
            f"{cannot} with attention {settings.attention!r}: it knows 'auto' and 'standard'. "
            "The kernels for CUDA are in the engine 'onnx-cuda'"
        )
    refuse_cuda_graphs(settings, cannot)
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if device == "auto":
        device = "cuda" if "CUDAExecutionProvider" in available else "cpu"
    if device == "cpu" and manifest.dtype == "bfloat16":
        raise UnsupportedError(
            f"{cannot} on cpu: onnxruntime has no bfloat16 "
            "kernels for CPUs. Take a float32 artifact, the engine 'torchscript', or a GPU"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = settings.threads.per_pack
    kernel, why = FUNCTION, ""
    if settings.attention == "standard":
        why = "attention 'standard' was asked for"
    if device == "cpu" and settings.attention == "auto" and entry.op_library is not None:
        kernel = _register_native(options, folder / entry.op_library)
    cuda = {"use_tf32": str(int(settings.tf32))} if device == "cuda" else None
    session = open_session(folder / entry.file, entry, options, cuda, cannot)
    names = [output.name for output in manifest.signature.outputs]
    spec = spec_of(manifest, name, device, kernel, why)
    return OnnxEngine(session, spec, names, settings.threads.concurrency if device == "cpu" else 1)


def refuse_cuda_graphs(settings: Settings, cannot: str) -> None:
    """Raises UnsupportedError if they were asked for."""
    if settings.cuda_graphs:
        raise UnsupportedError(
            f"{cannot} with CUDA graphs: onnxruntime captures fixed shapes alone. "
            "Take engine 'torchscript' or 'aoti-cuda'"
        )


def open_session(
    path: Path, entry: EngineEntry, options: Any, cuda: dict[str, str] | None, cannot: str
) -> Any:
    """An ``InferenceSession``.

    Args:
        path: of the graph.
        entry: of the manifest.
        options: ``onnxruntime.SessionOptions``.
        cuda: options of the CUDA provider, or None for the CPU.
        cannot: how a refusal begins.

    Raises:
        EngineError: onnxruntime cannot load the graph; the message is its own.
        UnsupportedError: CUDA was asked for and is not there.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if cuda is not None and "CUDAExecutionProvider" not in available:
        raise UnsupportedError(
            f"{cannot} on cuda: this onnxruntime has {', '.join(available)}. "
            "pip install 'esm2-engines[onnx-gpu]', or take device 'cpu'"
        )
    # TF32, onnxruntime's default on CUDA, would cost the float32 budget a thousandfold.
    providers = [] if cuda is None else [("CUDAExecutionProvider", {"use_tf32": "0", **cuda})]
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=[*providers, "CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises a class of its own for each status code
        raise EngineError(
            f"cannot load {path}: {_first_line(error)} (built with "
            f"{entry.built_with}, here onnxruntime {onnxruntime.__version__})"
        ) from error
    if cuda is not None and "CUDAExecutionProvider" not in session.get_providers():
        raise UnsupportedError(
            f"{cannot} on cuda: onnxruntime could not start its CUDA provider "
            "(no GPU, or another CUDA or cuDNN than it was built for). Take device 'cpu'"
        )
    return session


def spec_of(
    manifest: Manifest, name: str, device: str, attention: str, attention_reason: str = ""
) -> EngineSpec:
    """Of an engine that onnxruntime runs."""
    import onnxruntime

    return EngineSpec(
        format=name,
        artifact=manifest.name,
        device=device,
        dtype="int8" if manifest.engines[name].quantised else manifest.dtype,
        layers=tuple(manifest.layers),
        pool=manifest.pool,
        attention=attention,
        attention_reason=attention_reason,
        library=f"onnxruntime {onnxruntime.__version__}",
        synthetic=manifest.weights.kind == "synthetic",
    )


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
        return Outputs.from_arrays(self._output_names, self._fetch(batch, self._output_names))

    def embed(self, batch: PackedBatch, layer: int, how: Pool) -> NDArray[np.floating]:
        """See ``Engine.embed``."""
        check_pool(how)
        rows = self._fetch(batch, [f"representations.{layer}"])[0]
        return rows if how == "none" else pool(rows, batch.cu_seqlens, how)

    def _fetch(self, batch: PackedBatch, names: list[str]) -> list[NDArray[np.floating]]:
        """Runs one pack; these outputs come to the host."""
        if self._session is None:
            raise EngineError("this engine is closed: load it again")
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": batch.input_ids,
            "cu_seqlens": batch.cu_seqlens,
            "max_seqlen": np.array(batch.max_seqlen, dtype=np.int64),
        }
        try:
            return self._run_session(feeds, names)
        except Exception as error:  # onnxruntime raises a class of its own for each status code
            raise EngineError(
                f"onnxruntime failed on a pack of {batch.num_proteins} proteins, "
                f"{batch.num_tokens} tokens: {_first_line(error)}"
            ) from error

    def _run_session(
        self, feeds: dict[str, NDArray[Any]], names: list[str]
    ) -> list[NDArray[np.floating]]:
        arrays: list[NDArray[np.floating]] = self._session.run(names, feeds)
        return arrays

    def close(self) -> None:
        """See ``Engine.close``."""
        self._session = None

    def __enter__(self) -> "OnnxEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
