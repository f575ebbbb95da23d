"""What an engine is: the protocol, what it says of itself, what it returns, what is asked of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.attention import Attention
from runtime.domain import Domain
from runtime.errors import UnsupportedError
from runtime.packing import PackedBatch
from runtime.threads import Threads

if TYPE_CHECKING:
    from runtime.pooling import Pool


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is and where it runs.

    Attributes:
        format: its name in ``runtime.engines.table``.
        artifact: the artifact's name.
        device: ``cpu``, ``cuda``, or ``cuda:1`` and the like.
        dtype: of weights and outputs; ``int8`` means the linears' weights, outputs are float32.
        layers: exported layers, ascending.
        pool: how the ``pooled`` output pools, or None.
        attention: the kernel behind ``esm2::varlen_attention``.
        attention_reason: why faster ones were passed over; empty where there is none.
        library: the engine library and its version.
        synthetic: the weights are random; for trying the project only.
        embed_dim: E, of one row of the outputs.
        passed_over: engines that are faster, each with why it does not run here.
        domain: the largest packs that it was compared with fair-esm on; None where that is unknown.
    """

    format: str
    artifact: str
    device: str
    dtype: str
    layers: tuple[int, ...]
    pool: str | None
    attention: str
    attention_reason: str
    library: str
    synthetic: bool
    embed_dim: int
    passed_over: tuple[str, ...] = ()
    domain: Domain | None = None

    @property
    def output_dtype(self) -> np.dtype[np.floating]:
        """Of numbers on the host: NumPy has no bfloat16, and int8 engines give float32."""
        return np.dtype(np.float16 if self.dtype == "float16" else np.float32)


@dataclass(frozen=True)
class Outputs:
    """What an engine computed for one pack.

    Attributes:
        tensors: by the names of the manifest's signature, which says what each has rows for:
            ``[T, X]`` or ``[N, X]``.
    """

    tensors: dict[str, NDArray[np.floating]]

    @property
    def logits(self) -> NDArray[np.floating] | None:
        """``[T, 33]``, or None where the checkpoint has no LM head."""
        return self.tensors.get("logits")

    @property
    def representations(self) -> dict[int, NDArray[np.floating]]:
        """``{layer: [T, E]}`` of the exported layers."""
        prefix = "representations."
        return {
            int(name.removeprefix(prefix)): array
            for name, array in self.tensors.items()
            if name.startswith(prefix)
        }

    @property
    def pooled(self) -> NDArray[np.floating] | None:
        """``[N, E]``, or None where the artifact was built without pooling."""
        return self.tensors.get("pooled")


class Engine(Protocol):
    """A frozen model that runs packs. Engines are context managers.

    An engine belongs to the process that loaded it: in a forked child it raises EngineError, and so
    does pickling it.
    """

    spec: EngineSpec
    concurrency: int
    """How many threads may call ``run`` at once."""

    def unsupported_reasons(self, batch: PackedBatch) -> list[str]:
        """Why this engine cannot run ``batch``, in sentences; empty if it can."""
        ...

    def run(self, batch: PackedBatch, names: Sequence[str] | None = None) -> Outputs:
        """Runs one pack. The caller owns the returned arrays; a later run never changes them.

        Args:
            batch: what to run.
            names: of the outputs to bring to the host; None brings all of the signature's.

        Raises:
            EngineError: the engine library failed; the message is its own.
        """
        ...

    def embed(self, batch: PackedBatch, layer: int, how: "Pool") -> NDArray[np.floating]:
        """Runs one pack and brings one vector for each protein to the host, or each token's.

        Args:
            batch: what to run.
            layer: one of ``spec.layers``.
            how: see ``runtime.pool``.

        Returns:
            ``[N, E]``, or ``[T, E]`` where ``how`` is ``"none"``; the caller owns it.

        Raises:
            InputError: ``how`` is unknown.
            EngineError: the engine library failed; the message is its own.
        """
        ...

    def embed_several(
        self, batch: PackedBatch, wanted: "Sequence[tuple[int, Pool]]"
    ) -> list[NDArray[np.floating]]:
        """``embed`` of several layers and poolings, in one run.

        Args:
            batch: what to run.
            wanted: pairs ``(layer, how)``.

        Returns:
            One array for each pair.
        """
        ...

    def close(self) -> None:
        """Frees the weights. The engine cannot run afterwards."""
        ...

    def __enter__(self) -> "Engine": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def require_supported(engine: Engine, batch: PackedBatch) -> None:
    """Raises UnsupportedError for a pack that ``engine`` cannot run."""
    if reasons := engine.unsupported_reasons(batch):
        raise UnsupportedError(
            f"engine {engine.spec.format!r} cannot run this pack: {'; '.join(reasons)}"
        )


@dataclass(frozen=True)
class Settings:
    """What the caller of ``load`` wants of an engine; see there."""

    attention: Attention = "auto"
    threads: Threads = field(default_factory=lambda: Threads.resolve(None, 1))
    tf32: bool = False
    cuda_graphs: bool = False
