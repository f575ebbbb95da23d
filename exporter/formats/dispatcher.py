"""Watches PyTorch's dispatcher while an engine runs: positions, and calls of the attention op."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from exporter.formats.format import MAX_ATTENDED, Observed
from runtime.manifest_schema import Manifest
from runtime.packing import PackedBatch


class Spy(TorchDispatchMode):
    """Looks at every op that a module runs."""

    def __init__(self, num_frequencies: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = Observed()
        self.first_queries: torch.Tensor | None = None
        self._num_frequencies = num_frequencies

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # there is nothing to skip, and to skip it PyTorch would import its compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.esm2.varlen_attention.default:
            self.seen.calls.append((args[3].tolist(), int(args[4])))
            if self.first_queries is None:
                self.first_queries = args[0].clone()
            if len(args[0]) <= MAX_ATTENDED and args[0].itemsize == 2:
                # Copied before the engine goes on: it may use the memory again.
                attended = func(*args)
                tensors = (*args[:3], attended)
                self.seen.attended.append(tuple(x.double().cpu().numpy() for x in tensors))
                return attended
        elif func is torch.ops.aten.mul.Tensor and isinstance(args[1], torch.Tensor):
            positions, frequencies = args
            if frequencies.shape == (self._num_frequencies,) and positions.shape[1:] == (1,):
                self.seen.positions.append(positions.cpu().numpy())
        return func(*args, **(kwargs or {}))


@contextmanager
def observe(folder: Path, manifest: Manifest, batch: PackedBatch) -> Iterator[Observed]:
    """See ``Format.observe``: of a module whose every op goes through the dispatcher."""
    with Spy(manifest.architecture.head_dim // 2) as spy:
        yield spy.seen
