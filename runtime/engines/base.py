"""What all engines share: the process that they belong to, their end, and how they describe it."""

import os
from collections.abc import Sequence
from typing import NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.engine import EngineSpec, Outputs
from runtime.errors import EngineError
from runtime.manifest_schema import Manifest
from runtime.packing import PackedBatch
from runtime.pooling import Pool, check_pool, pool

T = TypeVar("T", bound="LoadedEngine")

# One that a card runs, and one that is queued behind it or on its way to the host.
PACKS_OF_A_CARD = 2


class LoadedEngine:
    """An engine of this process, until it is closed.

    Attributes:
        spec: see ``Engine``.
        concurrency: see ``Engine``.
    """

    def __init__(self, spec: EngineSpec, concurrency: int = 1):
        self.spec = spec
        self.concurrency = concurrency
        self._process: int | None = os.getpid()

    def embed(self, batch: PackedBatch, layer: int, how: Pool) -> NDArray[np.floating]:
        """See ``Engine.embed``."""
        return self.embed_several(batch, [(layer, how)])[0]

    def embed_several(
        self, batch: PackedBatch, wanted: Sequence[tuple[int, Pool]]
    ) -> list[NDArray[np.floating]]:
        """See ``Engine.embed_several``."""
        raise NotImplementedError

    def require_usable(self) -> None:
        """Raises EngineError unless the engine is open, and in the process that loaded it."""
        if self._process is None:
            raise EngineError("this engine is closed: load it again")
        # Threads do not survive a fork, and the libraries' pools would wait for theirs for ever.
        if (here := os.getpid()) != self._process:
            raise EngineError(
                f"engine {self.spec.format!r} was loaded in process {self._process}, and this is "
                f"its fork {here}, without its threads. Load it in each process: after the fork "
                "(no preloading web server), or with multiprocessing's 'spawn'"
            )

    def close(self) -> None:
        """See ``Engine.close``."""
        self._process = None

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise EngineError(
            f"engine {self.spec.format!r} cannot be pickled or copied: it belongs to the process "
            "that loaded it. Send the artifact's path, and load it there"
        )


class FetchingEngine(LoadedEngine):
    """An engine whose library brings those outputs to the host that were asked for."""

    def __init__(self, spec: EngineSpec, output_names: list[str], concurrency: int = 1):
        super().__init__(spec, concurrency)
        self._output_names = output_names

    def run(self, batch: PackedBatch, names: Sequence[str] | None = None) -> Outputs:
        """See ``Engine.run``."""
        names = self._output_names if names is None else names
        return Outputs(dict(zip(names, self._fetch(batch, names), strict=True)))

    def embed_several(
        self, batch: PackedBatch, wanted: Sequence[tuple[int, Pool]]
    ) -> list[NDArray[np.floating]]:
        """See ``Engine.embed_several``."""
        check_pools(wanted)
        return pooled_on_host(self.run(batch, representations(wanted)), batch, wanted)

    def _fetch(self, batch: PackedBatch, names: Sequence[str]) -> list[NDArray[np.floating]]:
        """Runs one pack; these outputs come to the host."""
        raise NotImplementedError


def check_pools(wanted: Sequence[tuple[int, Pool]]) -> None:
    """Raises InputError if a pooling is unknown."""
    for _, how in wanted:
        check_pool(how)


def representations(wanted: Sequence[tuple[int, Pool]]) -> list[str]:
    """Names of the outputs that pairs ``(layer, how)`` are made of, each once."""
    return list(dict.fromkeys(f"representations.{layer}" for layer, _ in wanted))


def pooled_on_host(
    outputs: Outputs, batch: PackedBatch, wanted: Sequence[tuple[int, Pool]]
) -> list[NDArray[np.floating]]:
    """An array for each pair ``(layer, how)`` of representations that are here."""
    rows = outputs.representations
    return [
        rows[layer] if how == "none" else pool(rows[layer], batch.cu_seqlens, how)
        for layer, how in wanted
    ]


def spec_of(
    manifest: Manifest, name: str, *, device: str, library: str, attention: str, reason: str = ""
) -> EngineSpec:
    """What engine ``name`` of an artifact is, run by ``library`` on ``device``."""
    return EngineSpec(
        format=name,
        artifact=manifest.name,
        device=device,
        dtype="int8" if manifest.engines[name].quantised else manifest.dtype,
        layers=tuple(manifest.layers),
        pool=manifest.pool,
        attention=attention,
        attention_reason=reason,
        library=library,
        synthetic=manifest.weights.kind == "synthetic",
        embed_dim=manifest.architecture.embed_dim,
        domain=parity.domain if (parity := manifest.parity.get(name)) else None,
    )
