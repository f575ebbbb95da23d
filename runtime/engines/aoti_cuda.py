"""AOTInductor for CUDA: ``model.cuda.pt2``, compiled for one compute capability."""

from pathlib import Path

from runtime.engine import Settings
from runtime.engines.aoti import run_package
from runtime.engines.torch_engine import TorchEngine, missing_library
from runtime.errors import UnsupportedError
from runtime.manifest import EngineEntry, Manifest

FORMAT = "aoti-cuda"


def reason_against(entry: EngineEntry, device: str) -> str | None:
    """Why "auto" should take another engine, in a sentence, or None."""
    if device == "cpu":
        return "it runs on CUDA alone"
    if reason := missing_library():
        return reason
    import torch

    if not torch.cuda.is_available():
        return f"it was compiled for CUDA, and PyTorch {torch.__version__} sees no GPU"
    if (here := capability_of_this_gpu()) != entry.compute_capability:
        return (
            f"it was compiled for compute capability {entry.compute_capability}, this GPU "
            f"({torch.cuda.get_device_name()}) has {here}. Export again here, or take engine "
            "'torchscript'"
        )
    return None


def load(folder: Path, manifest: Manifest, device: str, settings: Settings) -> TorchEngine:
    """See ``runtime.load``."""
    if reason := reason_against(manifest.engines[FORMAT], device):
        raise UnsupportedError(f"cannot load engine {FORMAT!r} of {manifest.name!r}: {reason}")
    return run_package(folder, manifest, FORMAT, "cuda", settings)


def capability_of_this_gpu() -> str:
    """Such as ``9.0``."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"
