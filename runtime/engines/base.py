"""What all engines share: the process that they belong to, their end, and how they describe it."""

import os
from typing import NoReturn, TypeVar

from runtime.engine import EngineSpec
from runtime.errors import EngineError
from runtime.manifest import Manifest

T = TypeVar("T", bound="LoadedEngine")


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


def spec_of(
    manifest: Manifest, name: str, device: str, library: str, attention: str, reason: str = ""
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
    )
