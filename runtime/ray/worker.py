"""An actor: it loads one engine and runs the packs that it is sent."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime import __version__
from runtime.attention import Attention
from runtime.device import default_max_tokens
from runtime.engine import Engine, EngineSpec, require_supported
from runtime.loading import load
from runtime.packing import PackedBatch
from runtime.pooling import Pool
from runtime.ray.artifact import Files, Shipped, is_here, on_this_node


@dataclass(frozen=True)
class Loading:
    """Arguments of ``runtime.load``, the same for each actor."""

    engine: str
    device: str
    attention: Attention
    threads: int
    concurrency: int
    tf32: bool
    cuda_graphs: bool

    def load(self, folder: Path, trust: str | None) -> Engine:
        """Loads an artifact whose files were compared before; its signature each actor verifies."""
        return load(
            folder, self.engine, self.device, self.attention, self.threads, self.concurrency,
            self.tf32, self.cuda_graphs, check_files=False, trust=trust,
        )  # fmt: skip


@dataclass(frozen=True)
class Description:
    """What an actor loaded.

    Attributes:
        spec: of its engine.
        concurrency: packs that the engine runs at once.
        max_tokens: the budget of a pack by its device.
        version: of esm2-engines on its node.
        host, pid: where it runs.
    """

    spec: EngineSpec
    concurrency: int
    max_tokens: int
    version: str
    host: str
    pid: int

    def differences(self, other: "Description") -> list[str]:
        """What of this would make other numbers than ``other``, in phrases."""
        pairs: dict[str, tuple[object, object]] = {
            name: (getattr(self.spec, name), getattr(other.spec, name))
            for name in ("format", "device", "dtype", "attention", "library")
        }
        pairs["esm2-engines"] = self.version, other.version
        pairs["packs at once"] = self.concurrency, other.concurrency
        return [
            f"{name} {mine} on {self.host}, {theirs} on {other.host}"
            for name, (mine, theirs) in pairs.items()
            if mine != theirs
        ]


@dataclass(frozen=True)
class SentPack:
    """A ``PackedBatch`` on its way: ``input_ids`` in a byte each, ids run to 32."""

    input_ids: NDArray[np.uint8]
    cu_seqlens: NDArray[np.int32]
    names: tuple[str, ...]

    @classmethod
    def of(cls, batch: PackedBatch) -> "SentPack":
        """Packs for the way."""
        return cls(batch.input_ids.astype(np.uint8), batch.cu_seqlens, batch.names)

    def batch(self) -> PackedBatch:
        """What was sent, in arrays that can be written; those that Ray gives cannot."""
        bounds = self.cu_seqlens.copy()
        longest = int(np.diff(bounds).max())
        return PackedBatch(self.input_ids.astype(np.int64), bounds, longest, self.names)


class Worker:
    """What runs in an actor's process.

    It is made without work, and loads when it is told to: what goes wrong then comes back as an
    error of a call, with its class.
    """

    def needs(self, shipped: Shipped) -> bool:
        """Whether the artifact has to be sent."""
        return not is_here(shipped)

    def load(self, shipped: Shipped, files: Files | None, loading: Loading) -> Description:
        """Loads the engine."""
        self._engine = loading.load(on_this_node(shipped, files), shipped.trust)
        # Ray calls with a thread more, so that a pack is here when another ends.
        self._places = BoundedSemaphore(self._engine.concurrency)
        return Description(
            self._engine.spec, self._engine.concurrency, default_max_tokens(self._engine.spec),
            __version__, os.uname().nodename, os.getpid(),
        )  # fmt: skip

    def embed(
        self, pack: SentPack, wanted: Sequence[tuple[int, Pool]]
    ) -> list[NDArray[np.floating]]:
        """``Engine.embed_several``; raises UnsupportedError for what the engine does not take."""
        batch = self._checked(pack)
        with self._places:
            return self._engine.embed_several(batch, wanted)

    def run(self, pack: SentPack, names: Sequence[str] | None) -> dict[str, Any]:
        """See ``Engine.run``: the tensors."""
        batch = self._checked(pack)
        with self._places:
            return dict(self._engine.run(batch, names).tensors)

    def _checked(self, pack: SentPack) -> PackedBatch:
        batch = pack.batch()
        require_supported(self._engine, batch)
        return batch
