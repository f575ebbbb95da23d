"""ONNX Runtime: ``model.int8.onnx``, its linears quantised to int8. For CPUs, and only by name."""

from pathlib import Path

from runtime.engine import Settings
from runtime.engines import onnx
from runtime.engines.onnx import reason_against
from runtime.errors import UnsupportedError
from runtime.manifest import Manifest

__all__ = ["load", "reason_against"]

FORMAT = "onnx-int8"


def load(folder: Path, manifest: Manifest, device: str, settings: Settings) -> onnx.OnnxEngine:
    """See ``runtime.load``. ``"auto"`` is the CPU: the int8 kernels are there alone."""
    if device == "cuda":
        raise UnsupportedError(
            f"cannot load engine {FORMAT!r} on cuda: it is for CPUs. Take device 'cpu', or the "
            "engine 'onnx'"
        )
    return onnx.load(folder, manifest, "cpu", settings, FORMAT)
