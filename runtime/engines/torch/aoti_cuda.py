"""AOTInductor for CUDA: ``model.cuda.pt2``, compiled for one compute capability."""

from pathlib import Path

from runtime.engine import Settings
from runtime.engines.torch import engine as torch_engine
from runtime.engines.torch.aoti import run_package
from runtime.engines.torch.engine import TorchEngine, library
from runtime.manifest_schema import Manifest

__all__ = ["capability_of_this_gpu", "library", "load", "unsupported_reasons"]

FORMAT = "aoti-cuda"


def unsupported_reasons(manifest: Manifest, device: str, settings: Settings) -> list[str]:
    """Why this engine cannot run so on ``device``, in sentences; empty if it can."""
    if device == "cpu":
        return ["it runs on CUDA alone"]
    if reasons := torch_engine.unsupported_reasons(manifest, device, settings):
        return reasons
    import torch

    built_for = manifest.engines[FORMAT].compute_capability
    if (here := capability_of_this_gpu(device)) != built_for:
        return [
            f"it was compiled for compute capability {built_for}, this GPU "
            f"({torch.cuda.get_device_name(device)}) has {here}. Export again here, or take engine "
            "'torchscript'"
        ]
    return []


def load(folder: Path, manifest: Manifest, device: str, settings: Settings) -> TorchEngine:
    """See ``runtime.load``."""
    return run_package(folder, manifest, FORMAT, device, settings)


def capability_of_this_gpu(device: str = "cuda") -> str:
    """Such as ``9.0``."""
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}"
