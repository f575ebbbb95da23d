"""What an engine is: the protocol, what it says of itself, what it returns, what is asked of it."""

import os
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from runtime.packing import PackedBatch
from runtime.threads import Threads

if TYPE_CHECKING:
    from runtime.pooling import Pool

# "auto" is the fastest that can run; "standard" the reference's arithmetic; the others are for
# CUDA: the flash-attn package, the engine library's own flash kernel, its memory-efficient one.
Attention = Literal["auto", "flash-attn", "flash", "memory-efficient", "standard"]
ATTENTION_CHOICES: tuple[str, ...] = get_args(Attention)

V1_ATTENTION_VARIABLES = ("ESM2_V1_ATTENTION", "VIRNUCPRO_V1_ATTENTION")


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is and where it runs.

    Attributes:
        format: key of ``runtime.loading.ENGINES``.
        artifact: the artifact's name.
        device: ``cpu`` or ``cuda``.
        dtype: of weights and outputs; ``int8`` means the linears' weights, outputs are float32.
        layers: exported layers, ascending.
        pool: how the ``pooled`` output pools, or None.
        attention: the kernel behind ``esm2::varlen_attention``.
        attention_reason: why faster ones were passed over; empty where there is none.
        library: the engine library and its version.
        synthetic: the weights are random; for trying the project only.
        embed_dim: E, of one row of the outputs.
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


@dataclass(frozen=True)
class Outputs:
    """What an engine computed for one pack.

    Attributes:
        logits: ``[T, 33]``, or None where the checkpoint has no LM head.
        representations: ``{layer: [T, E]}`` of the exported layers.
        pooled: ``[N, E]``, or None where the artifact was built without pooling.
    """

    logits: NDArray[np.floating] | None
    representations: dict[int, NDArray[np.floating]]
    pooled: NDArray[np.floating] | None

    def named(self) -> dict[str, NDArray[np.floating]]:
        """By the names of the manifest's signature."""
        tensors = {} if self.logits is None else {"logits": self.logits}
        tensors |= {f"representations.{k}": values for k, values in self.representations.items()}
        return tensors if self.pooled is None else {**tensors, "pooled": self.pooled}

    @classmethod
    def from_arrays(cls, names: list[str], arrays: list[NDArray[np.floating]]) -> "Outputs":
        """From an engine's outputs in the order of the manifest's signature."""
        by_name = dict(zip(names, arrays, strict=True))
        prefix = "representations."
        return cls(
            logits=by_name.get("logits"),
            representations={
                int(name.removeprefix(prefix)): array
                for name, array in by_name.items()
                if name.startswith(prefix)
            },
            pooled=by_name.get("pooled"),
        )


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

    def run(self, batch: PackedBatch) -> Outputs:
        """Runs one pack. The caller owns the returned arrays; a later run never changes them.

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


@dataclass(frozen=True)
class Settings:
    """What the caller of ``load`` wants of an engine; see there."""

    attention: Attention = "auto"
    threads: Threads = field(default_factory=lambda: Threads.resolve(None, 1))
    tf32: bool = False
    cuda_graphs: bool = False


def default_attention() -> Attention:
    """``"standard"`` where the environment asks for the reference's arithmetic."""
    asked = any(
        os.environ.get(variable, "").strip().lower() in ("1", "true", "yes", "on")
        for variable in V1_ATTENTION_VARIABLES
    )
    return "standard" if asked else "auto"
