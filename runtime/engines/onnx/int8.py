"""ONNX Runtime: ``model.int8.onnx``, its linears quantised to int8. For CPUs, and only by name."""

from pathlib import Path

from runtime.engine import Settings
from runtime.engines.onnx import cpu as onnx
from runtime.engines.onnx.cpu import library
from runtime.manifest_schema import Manifest

__all__ = ["library", "load", "unsupported_reasons"]

FORMAT = "onnx-int8"


def unsupported_reasons(manifest: Manifest, device: str, settings: Settings) -> list[str]:
    """Why this engine cannot run so on ``device``, in sentences; empty if it can."""
    if device != "cpu":
        return ["it is for CPUs. Take device 'cpu', or the engine 'onnx'"]
    return onnx.unsupported_reasons(manifest, device, settings)


def load(folder: Path, manifest: Manifest, device: str, settings: Settings) -> onnx.OnnxEngine:
    """See ``runtime.load``."""
    return onnx.load(folder, manifest, device, settings, FORMAT)
