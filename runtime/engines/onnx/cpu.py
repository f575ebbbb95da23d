"""ONNX Runtime: ``model.onnx`` with its weights memory-mapped from ``weights.safetensors``."""

import contextlib
import importlib.util
import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime import instructions
from runtime.device import index_of
from runtime.engine import EngineSpec, Settings
from runtime.engines.base import FetchingEngine, spec_of
from runtime.errors import EngineError, Esm2Error, UnsupportedError, cause
from runtime.manifest_schema import Manifest
from runtime.packing import PackedBatch

logger = logging.getLogger(__name__)

# From 1.29 on, onnxruntime tells Microsoft the model's name, hashes and timings, unless this is set
# when it is first imported. ORT_DISABLE_TELEMETRY=0 in the environment lets it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

FORMAT = "onnx"
# Seen on a stand-in for CUDA, 8M in float16: 1.23.2 left 115 nodes on the CPU and copied 153 times
# in a forward, 1.24 to 1.26 6 or 7 nodes and 5 or 6 times; 1.27 and later none but shapes.
OLDEST_ON_CUDA = (1, 27)
THREADS_ENTRY = "esm2.threads"
# For weights of more than 7 bits ONNX Runtime then takes uint8 by uint8: slower, no sum is cut off.
WHOLE_SUMS_ENTRY = "session.x64quantprecision"
FUNCTION = "standard (model-local function)"


def library() -> str:
    """Its name and version."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def missing_library() -> str | None:
    """What to install, or None."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed (pip install 'esm2-engines[onnx]')"
    try:
        import onnxruntime  # noqa: F401
    except Exception as error:  # a wheel for another system or NumPy fails in any way
        return f"onnxruntime cannot be imported ({cause(error)})"
    return None


def missing_provider() -> str | None:
    """Why the installed onnxruntime has no CUDA, or None; whether it starts, loading tells."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" in available:
        version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
        if version >= OLDEST_ON_CUDA:
            return None
        return (
            f"onnxruntime-gpu {onnxruntime.__version__} leaves parts of the graph on the CPU and "
            "copies between them and the card in every layer; 1.27 and later do not (pip install "
            "'esm2-engines[onnx-gpu]')"
        )
    return (
        f"it needs CUDAExecutionProvider, this onnxruntime has {', '.join(available)} (pip install "
        "'esm2-engines[onnx-gpu]', or take device 'cpu')"
    )


def unsupported_reasons(manifest: Manifest, device: str, settings: Settings) -> list[str]:
    """Why this engine cannot run so on ``device``, in sentences; empty if it can."""
    if reason := missing_library():
        return [reason]
    reasons = []
    if device != "cpu" and (reason := missing_provider()):
        reasons.append(reason)
    if device == "cpu" and manifest.dtype == "bfloat16":
        reasons.append(
            "onnxruntime has no bfloat16 kernels for CPUs. Take a float32 artifact, the engine "
            "'torchscript', or a GPU"
        )
    if settings.attention not in ("auto", "standard"):
        reasons.append(
            f"with attention {settings.attention!r}: it knows 'auto' and 'standard'. The kernels "
            "for CUDA are in the engine 'onnx-cuda'"
        )
    return reasons + no_cuda_graphs(settings)


def no_cuda_graphs(settings: Settings) -> list[str]:
    """That there are none, where they were asked for."""
    if not settings.cuda_graphs:
        return []
    return [
        "with CUDA graphs: onnxruntime captures fixed shapes alone. Take engine 'torchscript' or "
        "'aoti-cuda'"
    ]


def load(
    folder: Path, manifest: Manifest, device: str, settings: Settings, name: str = FORMAT
) -> "OnnxEngine":
    """See ``runtime.load``. Standard attention is the graph's own function."""
    entry = manifest.engines[name]
    options = session_options(settings.threads.of_pool, device)
    if entry.quantised and not instructions.has_int8_dot_product():
        options.add_session_config_entry(WHOLE_SUMS_ENTRY, "1")
    kernel, why = FUNCTION, ""
    if settings.attention == "standard":
        why = "attention 'standard' was asked for"
    if device == "cpu" and settings.attention == "auto" and entry.op_library is not None:
        kernel = _register_native(options, folder / entry.op_library)
    cuda = None if device == "cpu" else provider_options(device, settings)
    session = open_session(folder / entry.file, options, cuda)
    names = [output.name for output in manifest.signature.outputs]
    spec = spec_of(manifest, name, device=device, library=library(), attention=kernel, reason=why)
    return OnnxEngine(session, spec, names, settings.threads.concurrency if device == "cpu" else 1)


def provider_options(device: str, settings: Settings) -> dict[str, str]:
    """Of ONNX Runtime's CUDA provider: the card, and TF32, its default, only on request.

    TF32 would cost the float32 budget a thousandfold.
    """
    index = index_of(device)
    # Its default, 0, must not be named: from 1.26 on, onnxruntime warns of what has a device_id.
    card = {"device_id": str(index)} if index else {}
    return {**card, "use_tf32": str(int(settings.tf32))}


def session_options(num_threads: int, device: str) -> Any:
    """``SessionOptions`` with a pool of so many threads, the caller of ``run`` included."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # A pack's size comes again, and then a plan made for it wants its memory in one block: on a
    # card that is as much as the pack took before, once more.
    options.enable_mem_pattern = device == "cpu"
    options.intra_op_num_threads = num_threads
    # Read by runtime/ops/native/onnxruntime_op.cpp, which splits its work for them.
    options.add_session_config_entry(THREADS_ENTRY, str(num_threads))
    return options


def open_session(path: Path, options: Any, cuda: dict[str, str] | None) -> Any:
    """An ``InferenceSession``.

    Args:
        path: of the graph.
        options: ``onnxruntime.SessionOptions``.
        cuda: options of the CUDA provider, or None for the CPU.

    Raises:
        Exception: onnxruntime cannot load the graph; a class of its own for each status code.
        UnsupportedError: its CUDA provider does not start.
    """
    import onnxruntime

    if cuda is not None:
        _preload_cuda()
    providers = [] if cuda is None else [("CUDAExecutionProvider", cuda)]
    try:
        # No fallback: it prints to stdout, and then lacks kernels that a CPU does not have.
        session = onnxruntime.InferenceSession(
            str(path), options, providers=[*providers, "CPUExecutionProvider"], enable_fallback=0
        )
    except (ValueError, RuntimeError) as error:  # of providers; graphs have classes of their own
        if cuda is None:
            raise
        said = re.search(r"Invalid device ID.*|CUDA failure \d+: [^;]*", str(error))
        raise UnsupportedError(
            f"onnxruntime could not start its CUDA provider on card {cuda.get('device_id', 0)}: "
            f"{said[0].strip(' .') if said else cause(error)}. Take another card, or device 'cpu'"
        ) from error
    if cuda is not None and "CUDAExecutionProvider" not in session.get_providers():
        raise UnsupportedError(
            "onnxruntime could not start its CUDA provider (no GPU, or another CUDA or cuDNN than "
            "it was built for). Take device 'cpu'"
        )
    return session


def _preload_cuda() -> None:
    """Loads CUDA's libraries where pip installed them: the system's loader does not look there."""
    import onnxruntime

    if "torch" in sys.modules:
        return  # which has loaded its own
    # It prints what it does not find; the session says so too.
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


def _register_native(options: Any, library: Path) -> str:
    """Gives the session the native attention op; where it cannot run, warns of what is lost.

    Raises:
        EngineError: the file is another library.
    """
    try:
        name = instructions.of_library(library)
        options.register_custom_ops_library(str(library))
        return f"native ({name})"
    except EngineError:
        raise
    except Exception as error:  # onnxruntime raises a class of its own for each status code
        logger.warning(
            "cannot load %s: %s. Attention runs in onnxruntime's own ops, which takes longer",
            library, cause(error),
        )  # fmt: skip
        return FUNCTION


def feeds_of(batch: PackedBatch) -> dict[str, NDArray[Any]]:
    """What the graph's inputs get."""
    return {
        "input_ids": batch.input_ids,
        "cu_seqlens": batch.cu_seqlens,
        "max_seqlen": np.array(batch.max_seqlen, dtype=np.int64),
    }


class OnnxEngine(FetchingEngine):
    """An ``onnxruntime.InferenceSession`` that takes packs."""

    def __init__(self, session: Any, spec: EngineSpec, output_names: list[str], concurrency: int):
        super().__init__(spec, output_names, concurrency)
        self._session = session

    def unsupported_reasons(self, batch: PackedBatch) -> list[str]:
        """See ``Engine``: every valid pack runs."""
        return []

    def _fetch(self, batch: PackedBatch, names: Sequence[str]) -> list[NDArray[np.floating]]:
        with self._running(batch):
            return self._run_session(feeds_of(batch), names)

    @contextlib.contextmanager
    def _running(self, batch: PackedBatch) -> Iterator[None]:
        """Inside, what onnxruntime raises is one line about the pack."""
        self.require_usable()
        try:
            yield
        except Esm2Error:
            raise
        except Exception as error:  # onnxruntime raises a class of its own for each status code
            raise EngineError(
                f"onnxruntime failed on a pack of {batch.num_proteins} proteins, "
                f"{batch.num_tokens} tokens: {cause(error)}"
            ) from error

    def _run_session(
        self, feeds: dict[str, NDArray[Any]], names: Sequence[str]
    ) -> list[NDArray[np.floating]]:
        arrays: list[NDArray[np.floating]] = self._session.run(list(names), feeds)
        return arrays

    def close(self) -> None:
        """See ``Engine.close``."""
        super().close()
        self._session = None
