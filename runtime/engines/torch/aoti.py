"""AOTInductor: ``model.pt2``, whose constants come from ``weights.safetensors``."""

import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import instructions
from runtime.engine import Settings
from runtime.engines.torch import engine as torch_engine
from runtime.engines.torch.engine import TorchEngine, library, limit_threads, read_weights
from runtime.engines.torch.package import check_package
from runtime.errors import EngineError
from runtime.manifest_schema import Manifest
from runtime.staging import staging

if TYPE_CHECKING:
    import torch

__all__ = ["library", "load", "run_package", "unsupported_reasons"]

FORMAT = "aoti"


def unsupported_reasons(manifest: Manifest, device: str, settings: Settings) -> list[str]:
    """Why this engine cannot run so on ``device``, in sentences; empty if it can."""
    if device != "cpu":
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
    from runtime.ops import varlen_attention

    entry = manifest.engines[name]
    varlen_attention.use_native_of(folder, entry)
    limit_threads(settings.threads)
    path = folder / entry.file
    check_package(path)
    weights = read_weights(folder, device)
    with ExitStack() as unpacked:
        runner = _open_runner(unpacked.enter_context(_unpacked(path)), device)
        originals: dict[str, str] = runner.get_constant_names_to_original_fqns()
        if missing := set(originals.values()) - weights.keys():
            raise EngineError(f"cannot load {path}: weights.safetensors lacks {min(missing)}")
        constants = {constant: weights[original] for constant, original in originals.items()}
        runner.update_constant_buffer(constants, False, True, True)
        # A CPU's library is loaded; a card's kernels are read when they are first called.
        kept = None if device == "cpu" else unpacked.pop_all()
    compiled = _Compiled(runner, constants, kept)
    return TorchEngine(compiled, name, manifest, device, settings)


@contextmanager
def _unpacked(package: Path) -> Iterator[Path]:
    """The compiled library of a package, with its files around it.

    PyTorch's own loader unpacks too, and leaves the folder where the process is killed.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    with (
        staging(Path(tempfile.gettempdir()) / f"esm2-aoti-{user}") as folder,
        zipfile.ZipFile(package) as archive,
    ):
        archive.extractall(folder)
        library = next(folder.rglob("*.so"), None)
        if library is None:
            raise EngineError(f"cannot load {package}: it holds no compiled library. Export again")
        yield library


def _open_runner(library: Path, device: str) -> Any:
    """AOTInductor's own class: the public functions around it import the whole compiler."""
    from torch._C import _aoti

    if device == "cpu":
        return _aoti.AOTIModelContainerRunnerCpu(str(library), 1)
    # Single-threaded: else a forward asks whether the one before is done, and waits for it, which
    # keeps packs from being queued and CUDA graphs from being captured.
    cubins, single_threaded = str(library.parent), True
    runner: Any = _aoti.AOTIModelContainerRunnerCuda  # its stub lacks the last argument
    return runner(str(library), 1, device, cubins, single_threaded)


@dataclass(frozen=True)
class _Compiled:
    """The compiled forward with its constants, of which the code itself holds addresses alone.

    ``unpacked`` is its folder, which goes with it.
    """

    runner: Any
    constants: "dict[str, torch.Tensor]"
    unpacked: ExitStack | None

    def __call__(self, inputs: "list[torch.Tensor]") -> "list[torch.Tensor]":
        outputs: list[torch.Tensor] = self.runner.run(inputs)
        return outputs
