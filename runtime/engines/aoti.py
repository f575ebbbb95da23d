"""AOTInductor: ``model.pt2``, whose constants come from ``weights.safetensors``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import instructions
from runtime.engine import Settings
from runtime.engines import torch_engine
from runtime.engines.torch_engine import TorchEngine, library, read_weights
from runtime.errors import EngineError
from runtime.manifest import Manifest

if TYPE_CHECKING:
    import torch

__all__ = ["library", "load", "run_package", "unsupported_reasons"]

FORMAT = "aoti"


def unsupported_reasons(manifest: Manifest, device: str, settings: Settings) -> list[str]:
    """Why this engine cannot run so on ``device``, in sentences; empty if it can."""
    if device == "cuda":
        return [
            "it was compiled for a CPU. Take engine 'aoti-cuda' or 'torchscript', or device 'cpu'"
        ]
    reasons = torch_engine.unsupported_reasons(manifest, device, settings)
    if reason := instructions.problem_with(manifest.engines[FORMAT].instructions):
        reasons.append(f"{reason}. Take engine 'onnx', or export again here")
    return reasons


def load(folder: Path, manifest: Manifest, device: str, settings: Settings) -> TorchEngine:
    """See ``runtime.load``."""
    return run_package(folder, manifest, FORMAT, device, settings)


def run_package(
    folder: Path, manifest: Manifest, name: str, device: str, settings: Settings
) -> TorchEngine:
    """The engine ``name``, whose file AOTInductor made for ``device``."""
    import torch

    from runtime.ops import varlen_attention

    entry = manifest.engines[name]
    varlen_attention.use_native_of(folder, entry)
    if settings.threads.total is not None:
        torch.set_num_threads(settings.threads.total)
    weights = read_weights(folder, device)
    # AOTInductor's own class: the public function around it imports the whole compiler.
    loader = torch._C._aoti.AOTIModelPackageLoader(str(folder / entry.file), "model", False, 1, -1)
    names = set(loader.get_constant_fqns())
    if missing := sorted(names - weights.keys()):
        raise EngineError(
            f"cannot load {folder / entry.file}: weights.safetensors lacks {missing[0]}"
        )
    constants = {constant: weights[constant] for constant in names}
    loader.load_constants(constants, False, True, True)
    return TorchEngine(_Compiled(loader, constants), name, manifest, device, settings)


@dataclass(frozen=True)
class _Compiled:
    """The compiled forward with its constants, of which the code itself holds addresses alone."""

    loader: Any
    constants: "dict[str, torch.Tensor]"

    def __call__(self, inputs: "list[torch.Tensor]") -> "list[torch.Tensor]":
        outputs: list[torch.Tensor] = self.loader.run(inputs)
        return outputs
