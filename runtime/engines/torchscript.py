"""TorchScript: ``model.ts``, whose parameters come from ``weights.safetensors``."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.engine import Settings
from runtime.engines.torch_engine import (
    TorchEngine,
    cause,
    limit_threads,
    missing_library,
    read_weights,
)
from runtime.errors import EngineError, UnsupportedError
from runtime.manifest import EngineEntry, Manifest

if TYPE_CHECKING:
    import torch


def reason_against(entry: EngineEntry, device: str) -> str | None:
    """Why "auto" should take another engine, in a sentence, or None."""
    return missing_library()


def load(folder: Path, manifest: Manifest, device: str, settings: Settings) -> TorchEngine:
    """See ``runtime.load``."""
    if reason := reason_against(manifest.engines["torchscript"], device):
        raise UnsupportedError(f"cannot load engine 'torchscript' of {manifest.name!r}: {reason}")
    import torch

    from runtime.ops import varlen_attention

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(
            f"cannot load engine 'torchscript' of {manifest.name!r} on cuda: PyTorch "
            f"{torch.__version__} sees no GPU. Install a CUDA build and driver, or take device "
            "'cpu'"
        )
    entry = manifest.engines["torchscript"]
    varlen_attention.use_native_of(folder, entry)
    limit_threads(settings.threads)
    path = folder / entry.file
    try:
        module = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
        module.load_state_dict(read_weights(folder, device), assign=True)
    except (RuntimeError, OSError) as error:
        raise EngineError(
            f"cannot load {path}: {cause(error)} (built with "
            f"{entry.built_with}, here torch {torch.__version__})"
        ) from error
    module.eval()

    def forward(inputs: "list[torch.Tensor]") -> "Iterable[torch.Tensor]":
        # Optimized execution specialises to shapes, and no two packs have the same.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            outputs: tuple[torch.Tensor, ...] = module(*inputs)
            return outputs

    return TorchEngine(forward, "torchscript", manifest, device, settings)
