"""AOTInductor: ``model.pt2``, whose constants come from ``weights.safetensors``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import instructions
from runtime.engine import Settings
from runtime.engines.torch_engine import TorchEngine, cause, missing_library, read_weights
from runtime.errors import EngineError, UnsupportedError
from runtime.manifest import EngineEntry, Manifest

if TYPE_CHECKING:
    import torch


def reason_against(entry: EngineEntry, device: str) -> str | None:
    """Why "auto" should take another engine, in a sentence, or None."""
    if reason := missing_library():
        return reason
    if reason := instructions.problem_with(entry.instructions):
        return reason
    import torch

    wants_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return "it was compiled for a CPU, and there is a GPU" if wants_gpu else None


def load(folder: Path, manifest: Manifest, device: str, settings: Settings) -> TorchEngine:
    """See ``runtime.load``."""
    cannot = f"cannot load engine 'aoti' of {manifest.name!r}"
    entry = manifest.engines["aoti"]
    if reason := missing_library():
        raise UnsupportedError(f"{cannot}: {reason}")
    if reason := instructions.problem_with(entry.instructions):
        raise UnsupportedError(f"{cannot}: {reason}. Take engine 'onnx', or export again here")
    if device == "cuda":
        raise UnsupportedError(
            f"{cannot} on cuda: it was compiled for a CPU. "
            "Take engine 'aoti-cuda' or 'torchscript', or device 'cpu'"
        )
    return run_package(folder, manifest, "aoti", "cpu", settings)


def run_package(
    folder: Path, manifest: Manifest, name: str, device: str, settings: Settings
) -> TorchEngine:
    """The engine ``name``, whose file AOTInductor made for ``device``.

    Raises:
        EngineError: PyTorch cannot load the file; the message is its own.
    """
    import torch

    from runtime.ops import varlen_attention

    entry = manifest.engines[name]
    varlen_attention.use_native_of(folder, entry)
    if settings.threads.total is not None:
        torch.set_num_threads(settings.threads.total)
    path = folder / entry.file
    try:
        weights = read_weights(folder, device)
        # AOTInductor's own class: the public function around it imports the whole compiler.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        names = set(loader.get_constant_fqns())
        if missing := names - weights.keys():
            raise EngineError(f"cannot load {path}: weights.safetensors lacks {sorted(missing)[0]}")
        constants = {constant: weights[constant] for constant in names}
        loader.load_constants(constants, False, True, True)
    except (RuntimeError, OSError) as error:
        raise EngineError(
            f"cannot load {path}: {cause(error)} (built with "
            f"{entry.built_with}, here torch {torch.__version__})"
        ) from error
    return TorchEngine(_Compiled(loader, constants), name, manifest, device, settings)


@dataclass(frozen=True)
class _Compiled:
    """The compiled forward with its constants, of which the code itself holds addresses alone."""

    loader: Any
    constants: "dict[str, torch.Tensor]"

    def __call__(self, inputs: "list[torch.Tensor]") -> "list[torch.Tensor]":
        outputs: list[torch.Tensor] = self.loader.run(inputs)
        return outputs
