"""TorchScript: ``model.ts``, whose parameters come from ``weights.safetensors``."""

from pathlib import Path
from typing import TYPE_CHECKING

from runtime.engine import Attention, EngineSpec, Outputs, Threads
from runtime.engines import torch_arrays
from runtime.errors import EngineError, UnsupportedError
from runtime.manifest import EngineEntry, Manifest
from runtime.packing import PackedBatch

if TYPE_CHECKING:
    import torch


def reason_against(entry: EngineEntry, device: str) -> str | None:
    """Why "auto" should take another engine, in a sentence, or None."""
    return torch_arrays.missing_library()


def load(
    folder: Path, manifest: Manifest, device: str, attention: Attention, threads: Threads
) -> "TorchScriptEngine":
    """See ``runtime.load``."""
    if reason := reason_against(manifest.engines["torchscript"], device):
        raise UnsupportedError(f"cannot load engine 'torchscript' of {manifest.name!r}: {reason}")
    import torch

    from runtime.ops import varlen_attention

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(
            f"cannot load engine 'torchscript' on cuda: PyTorch {torch.__version__} sees no GPU. "
            "Install a CUDA build and driver, or take device 'cpu'"
        )
    entry = manifest.engines["torchscript"]
    varlen_attention.use_native_of(folder, entry)
    if threads.total is not None:
        torch.set_num_threads(threads.total)
    path = folder / entry.file
    try:
        module = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
        module.load_state_dict(torch_arrays.read_weights(folder, device), assign=True)
    except (RuntimeError, OSError) as error:
        raise EngineError(
            f"cannot load {path}: {torch_arrays.cause(error)} (built with "
            f"{entry.built_with}, here torch {torch.__version__})"
        ) from error
    spec = EngineSpec(
        format="torchscript",
        artifact=manifest.name,
        device=device,
        dtype=manifest.dtype,
        layers=tuple(manifest.layers),
        pool=manifest.pool,
        attention=varlen_attention.kernel_name(
            torch.device(device),
            getattr(torch, manifest.dtype),
            manifest.architecture.head_dim,
            attention,
        ),
        library=f"torch {torch.__version__}",
        synthetic=manifest.weights.kind == "synthetic",
    )
    names = [output.name for output in manifest.signature.outputs]
    return TorchScriptEngine(module.eval(), spec, names, attention)


class TorchScriptEngine:
    """A traced module; one pack at a time, for PyTorch has one thread count a process."""

    concurrency = 1

    def __init__(
        self,
        module: "torch.jit.ScriptModule",
        spec: EngineSpec,
        output_names: list[str],
        attention: Attention,
    ):
        self.spec = spec
        self._module: torch.jit.ScriptModule | None = module
        self._output_names = output_names
        self._attention = attention

    def unsupported_reasons(self, batch: PackedBatch) -> list[str]:
        """See ``Engine``: every valid pack runs."""
        return []

    def run(self, batch: PackedBatch) -> Outputs:
        """See ``Engine.run``."""
        import torch

        from runtime.ops import varlen_attention

        if self._module is None:
            raise EngineError("this engine is closed: load it again")
        # Optimized execution specialises to shapes, and no two packs have the same.
        with (
            torch.inference_mode(),
            torch.jit.optimized_execution(False),  # type: ignore[attr-defined]
            varlen_attention.attention(self._attention),
        ):
            try:
                tensors = self._module(*torch_arrays.inputs_of(batch, self.spec.device))
                arrays = torch_arrays.to_arrays(tensors)
            except RuntimeError as error:
                raise torch_arrays.failure(batch, error) from error
        return Outputs.from_arrays(self._output_names, arrays)

    def close(self) -> None:
        """See ``Engine.close``."""
        self._module = None

    def __enter__(self) -> "TorchScriptEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
