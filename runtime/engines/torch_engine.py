"""What the engines that PyTorch runs share: all but how their file is loaded and called."""

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.engine import Attention, EngineSpec, Outputs
from runtime.errors import EngineError
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


def read_weights(folder: Path, device: str) -> "dict[str, torch.Tensor]":
    """``weights.safetensors``; on the CPU mapped, not copied.

    Raises:
        OSError: missing, or not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / "weights.safetensors", device)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def cause(error: Exception) -> str:
    """The line of PyTorch's message that says what happened; TorchScript puts its trace before."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    telling = [line for line in lines if "Error: " in line or "error: " in line]
    return (telling or lines)[0].strip()


class TorchEngine:
    """One pack at a time, for PyTorch has one thread count a process.

    Args:
        forward: from ``input_ids``, ``cu_seqlens`` on the device and ``max_seqlen`` on the host to
            the outputs of the manifest's signature. Let go of by ``close``, with all that it holds.
        name: key of ``runtime.engine.ENGINES``.
        manifest: of the artifact.
        device: ``cpu`` or ``cuda``.
        attention: ``"auto"`` or ``"standard"``.
    """

    concurrency = 1

    def __init__(
        self, forward: "Callable[[list[torch.Tensor]], Iterable[torch.Tensor]]", name: str,
        manifest: Manifest, device: str, attention: Attention,
    ):  # fmt: skip
        import torch

        from runtime.ops import varlen_attention

        self.spec = EngineSpec(
            format=name,
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
        self._forward: Callable[[list[torch.Tensor]], Iterable[torch.Tensor]] | None = forward
        self._output_names = [output.name for output in manifest.signature.outputs]
        self._attention = attention

    def unsupported_reasons(self, batch: PackedBatch) -> list[str]:
        """See ``Engine``: every valid pack runs."""
        return []

    def run(self, batch: PackedBatch) -> Outputs:
        """See ``Engine.run``."""
        import torch

        from runtime.ops import varlen_attention

        if self._forward is None:
            raise EngineError("this engine is closed: load it again")
        with torch.inference_mode(), varlen_attention.attention(self._attention):
            try:
                tensors = self._forward([
                    torch.from_numpy(batch.input_ids).to(self.spec.device),
                    torch.from_numpy(batch.cu_seqlens).to(self.spec.device),
                    torch.tensor(batch.max_seqlen),
                ])  # fmt: skip
                arrays = [_to_array(tensor) for tensor in tensors]
            except RuntimeError as error:
                raise EngineError(
                    f"torch failed on a pack of {batch.num_proteins} proteins, "
                    f"{batch.num_tokens} tokens: {cause(error)}"
                ) from error
        return Outputs.from_arrays(self._output_names, arrays)

    def forward_on_device(self, batch: PackedBatch) -> "Callable[[], dict[str, torch.Tensor]]":
        """``run`` without its copies, for measuring and for watching what the device does.

        Returns:
            A function that runs ``batch``, whose tensors are on the device now, and leaves the
            outputs there, by the names of the manifest's signature.

        Raises:
            EngineError: the engine is closed.
        """
        import torch

        from runtime.ops import varlen_attention

        if (forward := self._forward) is None:
            raise EngineError("this engine is closed: load it again")
        inputs = [
            torch.from_numpy(batch.input_ids).to(self.spec.device),
            torch.from_numpy(batch.cu_seqlens).to(self.spec.device),
            torch.tensor(batch.max_seqlen),
        ]

        def run() -> "dict[str, torch.Tensor]":
            with torch.inference_mode(), varlen_attention.attention(self._attention):
                return dict(zip(self._output_names, forward(inputs), strict=True))

        return run

    def close(self) -> None:
        """See ``Engine.close``."""
        self._forward = None

    def __enter__(self) -> "TorchEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _to_array(tensor: "torch.Tensor") -> NDArray[np.floating]:
    """On the host. NumPy has no bfloat16; float32 holds every bfloat16 exactly."""
    import torch

    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    array: NDArray[np.floating] = wide.cpu().numpy()
    return array
