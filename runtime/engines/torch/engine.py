"""What the engines that PyTorch runs share: all but how their file is loaded and called."""

import ctypes
import importlib.metadata
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.device import index_of
from runtime.engine import Outputs, Settings
from runtime.engines.base import (
    PACKS_OF_A_CARD,
    LoadedEngine,
    check_pools,
    pooled_on_host,
    representations,
    spec_of,
)
from runtime.errors import EngineError, Esm2Error, UnsupportedError, cause
from runtime.manifest_schema import Manifest
from runtime.packing import PackedBatch
from runtime.pairs import CONTACTS
from runtime.pooling import Pool
from runtime.threads import Threads
from runtime.weights import FILE_NAME

if TYPE_CHECKING:
    import torch

    from runtime.engines.torch.fetching import Fetched
    from runtime.ops.choice import Choice

    Tensors = dict[str, torch.Tensor]


NO_GPU = "sees no GPU. Install a CUDA build and driver, or take device 'cpu'"


def library() -> str:
    """Its name and version."""
    import torch

    return f"torch {torch.__version__}"


def unsupported_reasons(manifest: Manifest, device: str, settings: Settings) -> list[str]:
    """Why no engine of PyTorch can run so on ``device``, in sentences; empty if some can."""
    for package in ("torch", "safetensors"):
        if importlib.util.find_spec(package) is None:
            return [f"{package} is not installed (pip install 'esm2-engines[torch]')"]
    # Two seconds are spent on importing PyTorch for an answer that the driver's absence gives.
    if device != "cpu" and "torch" not in sys.modules and not _has_driver():
        return [f"PyTorch {importlib.metadata.version('torch')} {NO_GPU}"]
    try:
        import torch
    except Exception as error:  # a wheel for another system or NumPy fails in any way
        return [f"torch cannot be imported ({cause(error)})"]
    if device != "cpu" and not torch.cuda.is_available():
        return [f"PyTorch {torch.__version__} {NO_GPU}"]
    if device != "cpu" and index_of(device) >= (count := torch.cuda.device_count()):
        return [f"PyTorch sees {count} GPUs, the last of them cuda:{count - 1}"]
    reasons = []
    try:
        attention = choose_attention(manifest, device, settings).name
    except UnsupportedError as error:
        return [str(error)]
    waits = "standard attention" if attention == "standard" else ""
    waits = waits or ("a contact head" if manifest.gives(CONTACTS) else "")
    if settings.cuda_graphs and (device == "cpu" or waits):
        why = f"{waits} waits for it" if device != "cpu" else "this is a CPU"
        reasons.append(
            "with CUDA graphs: they need a card and a forward that never waits for it, and " + why
        )
    return reasons


def _has_driver() -> bool:
    """Whether NVIDIA's driver may be here; on Linux its library tells."""
    if not sys.platform.startswith("linux"):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def choose_attention(manifest: Manifest, device: str, settings: Settings) -> "Choice":
    """The kernel behind ``esm2::varlen_attention``.

    Raises:
        UnsupportedError: the one that was asked for cannot run; says why.
    """
    import torch

    from runtime.ops import varlen_attention

    return varlen_attention.choose(
        torch.device(device),
        getattr(torch, manifest.dtype),
        manifest.architecture.head_dim,
        settings.attention,
    )


def read_weights(folder: Path, device: str) -> "dict[str, torch.Tensor]":
    """``weights.safetensors``; on the CPU mapped, not copied.

    Raises:
        EngineError: the file is not there, or not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / FILE_NAME
    try:
        return load_file(path, device)
    except (OSError, SafetensorError) as error:
        raise EngineError(f"cannot load {path}: {cause(error)}") from error


def on(device: str) -> AbstractContextManager[None]:
    """Makes a card the current one: kernels that are not PyTorch's own are launched there."""
    import torch

    return nullcontext() if device == "cpu" else torch.cuda.device(torch.device(device))


def limit_threads(threads: Threads) -> None:
    """PyTorch's threads are the process's: never more of them without the caller's word."""
    import torch

    if not threads.is_default or threads.total < torch.get_num_threads():
        torch.set_num_threads(threads.total)


class TorchEngine(LoadedEngine):
    """One pack at a time, for PyTorch has one thread count a process; other callers wait.

    On a card it takes two: the next is queued while one is on its way to the host.

    Args:
        forward: from ``input_ids``, ``cu_seqlens`` on the device and ``max_seqlen`` on the host to
            the outputs of the manifest's signature. Let go of by ``close``, with all that it holds.
        name: of its format.
        manifest: of the artifact.
        device: ``cpu`` or ``cuda``.
        settings: of ``runtime.load``; nothing in ``unsupported_reasons`` speaks against them.
    """

    def __init__(
        self, forward: "Callable[[list[torch.Tensor]], Iterable[torch.Tensor]]", name: str,
        manifest: Manifest, device: str, settings: Settings,
    ):  # fmt: skip
        self._choice = choose_attention(manifest, device, settings)
        reason = "; ".join(self._choice.passed_over)
        super().__init__(
            spec_of(
                manifest,
                name,
                device=device,
                library=library(),
                attention=self._choice.name,
                reason=reason,
            ),
            concurrency=1 if device == "cpu" else PACKS_OF_A_CARD,
        )
        self.output_names = [output.name for output in manifest.signature.outputs]
        if settings.cuda_graphs:
            from runtime.engines.torch.cuda_graphs import GraphedForward

            forward = GraphedForward(forward, [o.rows for o in manifest.signature.outputs])
        self._forward: Callable[[list[torch.Tensor]], Iterable[torch.Tensor]] | None = forward
        # AOTInductor's runner waits inside for its only model, with the interpreter held.
        self._one_at_a_time = threading.Lock()
        if device != "cpu":
            _set_tf32(settings.tf32)

    def unsupported_reasons(self, batch: PackedBatch) -> list[str]:
        """See ``Engine``: every valid pack runs."""
        return []

    def run(self, batch: PackedBatch, names: Sequence[str] | None = None) -> Outputs:
        """See ``Engine.run``."""
        names = self.output_names if names is None else names
        with self._failures_of(batch):
            fetched = self._queued(batch, lambda tensors, _: [tensors[name] for name in names])
            return Outputs(dict(zip(names, fetched.arrays(), strict=True)))

    def embed_several(
        self, batch: PackedBatch, wanted: Sequence[tuple[int, Pool]]
    ) -> list[NDArray[np.floating]]:
        """See ``Engine.embed_several``; on CUDA the card pools, and only the results leave it."""
        from runtime.engines.torch.pooling import pool_tensor

        check_pools(wanted)
        if self.spec.device == "cpu":
            return pooled_on_host(self.run(batch, representations(wanted)), batch, wanted)

        def chosen(tensors: "Tensors", cu_seqlens: "torch.Tensor") -> "list[torch.Tensor]":
            rows = [(tensors[f"representations.{layer}"], how) for layer, how in wanted]
            return [x if how == "none" else pool_tensor(x, cu_seqlens, how) for x, how in rows]

        with self._failures_of(batch):
            return self._queued(batch, chosen).arrays()

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
            EngineError: the engine is closed, or another process's.
        """
        import torch

        from runtime.ops import varlen_attention

        self.require_usable()
        assert self._forward is not None
        with torch.inference_mode(), on(self.spec.device), varlen_attention.using(self._choice):
            return self._forward(inputs)

    def _all_outputs(self, inputs: "list[torch.Tensor]") -> "Tensors":
        tensors = list(self.forward(inputs))
        if len(tensors) != len(self.output_names):
            raise EngineError(
                f"engine {self.spec.format!r} gives {len(tensors)} outputs, the manifest names "
                f"{len(self.output_names)}. Export again or copy the artifact anew"
            )
        return dict(zip(self.output_names, tensors, strict=True))

    def _queued(
        self, batch: PackedBatch,
        chosen: "Callable[[Tensors, torch.Tensor], list[torch.Tensor]]",
    ) -> "Fetched":  # fmt: skip
        """A forward, which is done behind this on a CPU, and on its way on a card.

        Args:
            batch: to run.
            chosen: gives what comes to the host, of the outputs by name and ``cu_seqlens``. All
                else is given back here, to the next pack.
        """
        import torch

        from runtime.engines.torch.fetching import Fetched

        with self._one_at_a_time, torch.inference_mode(), on(self.spec.device):
            inputs = self.inputs(batch)
            return Fetched(chosen(self._all_outputs(inputs), inputs[1]))

    @contextmanager
    def _failures_of(self, batch: PackedBatch) -> Iterator[None]:
        """A card tells of them when its results are waited for."""
        try:
            yield
        except Esm2Error:
            raise
        except Exception as error:  # PyTorch raises most of Python's classes
            raise EngineError(
                f"torch failed on a pack of {batch.num_proteins} proteins, "
                f"{batch.num_tokens} tokens: {cause(error)}"
            ) from error

    def close(self) -> None:
        """See ``Engine.close``."""
        super().close()
        self._forward = None


def _set_tf32(allowed: bool) -> None:
    """Of the whole process, once.

    It is read by its newer name: PyTorch refuses to tell the older one in a program that has set
    the newer. It is set by the older name, which sets both.
    """
    import torch

    matmul = torch.backends.cuda.matmul
    if (matmul.fp32_precision == "tf32") != allowed:
        matmul.allow_tf32 = allowed
