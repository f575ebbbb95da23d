"""TorchScript: ``model.ts``, whose parameters come from ``weights.safetensors``."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.engine import Attention, EngineSpec, Outputs, Threads
from runtime.errors import EngineError, UnsupportedError
from runtime.manifest import Manifest
from runtime.packing import PackedBatch

if TYPE_CHECKING:
    import torch


def missing_library() -> str | None:
    """What to install, or None."""
    for package in ("torch", "safetensors"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed (pip install 'esm2-engines[torch]')"
    return None


def load(
    folder: Path, manifest: Manifest, device: str, attention: Attention, threads: Threads
) -> "TorchScriptEngine":
    """See ``runtime.load``."""
    if reason := missing_library():
        raise UnsupportedError(f"cannot load engine 'torchscript' of {manifest.name!r}: {reason}")
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

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
        module.load_state_dict(load_file(folder / "weights.safetensors", device), assign=True)
    except (RuntimeError, SafetensorError) as error:
        raise EngineError(
            f"cannot load {path}: {_cause(error)} (built with "
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
                tensors = self._module(
                    torch.from_numpy(batch.input_ids).to(self.spec.device),
                    torch.from_numpy(batch.cu_seqlens).to(self.spec.device),
                    torch.tensor(batch.max_seqlen),
                )
                # NumPy has no bfloat16; float32 holds every bfloat16 exactly.
                wide = [t.float() if t.dtype == torch.bfloat16 else t for t in tensors]
                arrays = [t.cpu().numpy() for t in wide]
            except RuntimeError as error:
                raise EngineError(
                    f"torch failed on a pack of {batch.num_proteins} proteins, "
                    f"{batch.num_tokens} tokens: {_cause(error)}"
                ) from error
        return Outputs.from_arrays(self._output_names, arrays)

    def close(self) -> None:
        """See ``Engine.close``."""
        self._module = None

    def __enter__(self) -> "TorchScriptEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cause(error: Exception) -> str:
    """The line of PyTorch's message that says what happened; TorchScript puts its trace before."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    telling = [line for line in lines if "Error: " in line or "error: " in line]
    return (telling or lines)[0].strip()
