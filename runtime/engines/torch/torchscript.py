"""TorchScript: ``model.ts``, whose parameters come from ``weights.safetensors``."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.engine import Settings
from runtime.engines.torch.engine import (
    TorchEngine,
    library,
    limit_threads,
    on,
    read_weights,
    unsupported_reasons,
)
from runtime.engines.torch.package import check_package
from runtime.manifest_schema import Manifest

if TYPE_CHECKING:
    import torch

__all__ = ["library", "load", "unsupported_reasons"]

FORMAT = "torchscript"


def load(folder: Path, manifest: Manifest, device: str, settings: Settings) -> TorchEngine:
    """See ``runtime.load``."""
    import torch

    from runtime.ops import rotary, varlen_attention

    entry = manifest.engines[FORMAT]
    varlen_attention.use_native_of(folder, entry)
    if device != "cpu":
        with on(device):
            rotary.warn_unless_fused()
    limit_threads(settings.threads)
    check_package(folder / entry.file)
    module = torch.jit.load(folder / entry.file, map_location=device)
    module.load_state_dict(read_weights(folder, device), assign=True)
    module.eval()

    def forward(inputs: "list[torch.Tensor]") -> "Iterable[torch.Tensor]":
        # Optimized execution specialises to shapes, and no two packs have the same.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            outputs: tuple[torch.Tensor, ...] = module(*inputs)
            return outputs

    return TorchEngine(forward, FORMAT, manifest, device, settings)
