"""What the engines that PyTorch runs share: all but how their file is loaded and called."""

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.engine import EngineSpec, Outputs, Settings
from runtime.errors import EngineError, UnsupportedError
from runtime.manifest import Manifest
from runtime.packing import PackedBatch
from runtime.pooling import Pool, check_pool, pool
from runtime.weights_file import FILE_NAME

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
        return load_file(folder / FILE_NAME, device)
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
        settings: of ``runtime.load``.

    Raises:
        UnsupportedError: the attention or the CUDA graphs that were asked for cannot run here.
    """

    concurrency = 1

    def __init__(
        self, forward: "Callable[[list[torch.Tensor]], Iterable[torch.Tensor]]", name: str,
        manifest: Manifest, device: str, settings: Settings,
    ):  # fmt: skip
        import torch

        from runtime.ops import varlen_attention

        self._choice = varlen_attention.choose(
            torch.device(device),
            getattr(torch, manifest.dtype),
            manifest.architecture.head_dim,
            settings.attention,
        )
        self.spec = EngineSpec(
            format=name,
            artifact=manifest.name,
            device=device,
            dtype=manifest.dtype,
            layers=tuple(manifest.layers),
            pool=manifest.pool,
            attention=self._choice.name,
            attention_reason="; ".join(self._choice.passed_over),
            library=f"torch {torch.__version__}",
            synthetic=manifest.weights.kind == "synthetic",
        )
        self.output_names = [output.name for output in manifest.signature.outputs]
        if settings.cuda_graphs:
            forward = _graphed(forward, self.output_names, self.spec)
        self._forward: Callable[[list[torch.Tensor]], Iterable[torch.Tensor]] | None = forward
        self._tf32 = settings.tf32

    def unsupported_reasons(self, batch: PackedBatch) -> list[str]:
        """See ``Engine``: every valid pack runs."""
        return []

    def run(self, batch: PackedBatch) -> Outputs:
        """See ``Engine.run``."""
        with self._running(batch):
            arrays = [_to_array(tensor) for tensor in self.forward(self.inputs(batch))]
        return Outputs.from_arrays(self.output_names, arrays)

    def embed(self, batch: PackedBatch, layer: int, how: Pool) -> NDArray[np.floating]:
        """See ``Engine.embed``; on CUDA the card pools, and only the result leaves it."""
        from runtime.engines.torch_pooling import pool_tensor

        check_pool(how)
        with self._running(batch):
            inputs = self.inputs(batch)
            tensors = list(self.forward(inputs))
            rows = tensors[self.output_names.index(f"representations.{layer}")]
            if self.spec.device == "cuda" and how != "none":
                return _to_array(pool_tensor(rows, inputs[1], how))
            array = _to_array(rows)
        return array if how == "none" else pool(array, batch.cu_seqlens, how)

    def inputs(self, batch: PackedBatch) -> "list[torch.Tensor]":
        """What ``forward`` takes: ``input_ids``, ``cu_seqlens`` on the device, ``max_seqlen``."""
        import torch

        on_host = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.cu_seqlens)
        longest = torch.tensor(batch.max_seqlen)
        if self.spec.device == "cpu":
            return [*on_host, longest]
        # From pinned memory, so that the host does not wait for what the card is doing.
        return [*(x.pin_memory().to(self.spec.device, non_blocking=True) for x in on_host), longest]

    def forward(self, inputs: "list[torch.Tensor]") -> "Iterable[torch.Tensor]":
        """The outputs of the manifest's signature, left on the device until the next call.

        Nothing in it waits for the card, unless attention is ``standard``.

        Raises:
            EngineError: the engine is closed.
        """
        import torch

        from runtime.ops import varlen_attention

        if self._forward is None:
            raise EngineError("this engine is closed: load it again")
        with torch.inference_mode(), varlen_attention.using(self._choice), _tf32(self._tf32):
            return self._forward(inputs)

    @contextmanager
    def _running(self, batch: PackedBatch) -> Iterator[None]:
        import torch

        try:
            with torch.inference_mode():
                yield
        except RuntimeError as error:
            raise EngineError(
                f"torch failed on a pack of {batch.num_proteins} proteins, "
                f"{batch.num_tokens} tokens: {cause(error)}"
            ) from error

    def close(self) -> None:
        """See ``Engine.close``."""
        self._forward = None

    def __enter__(self) -> "TorchEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _graphed(
    forward: "Callable[[list[torch.Tensor]], Iterable[torch.Tensor]]", output_names: list[str],
    spec: EngineSpec,
) -> "Callable[[list[torch.Tensor]], Iterable[torch.Tensor]]":  # fmt: skip
    from runtime.engines.cuda_graphs import GraphedForward

    if spec.device != "cuda" or spec.attention == "standard":
        why = "standard attention waits for it" if spec.device == "cuda" else "this is a CPU"
        raise UnsupportedError(
            f"cannot load engine {spec.format!r} of {spec.artifact!r} with CUDA graphs: they need "
            f"a card and a forward that never waits for it, and {why}"
        )
    return GraphedForward(forward, output_names)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """PyTorch's switch is of the whole process, so it is put back."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _to_array(tensor: "torch.Tensor") -> NDArray[np.floating]:
    """On the host. NumPy has no bfloat16; float32 holds every bfloat16 exactly."""
    import torch

    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    array: NDArray[np.floating] = wide.cpu().numpy()
    return array
