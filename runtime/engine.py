"""The Engine protocol, and ``load``: from an artifact folder to an engine that runs packs."""

import importlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from runtime.errors import EngineError
from runtime.packing import PackedBatch

if TYPE_CHECKING:
    from runtime.manifest import Manifest
    from runtime.pooling import Pool

logger = logging.getLogger(__name__)

# "auto" is the fastest that can run; "standard" the reference's arithmetic; the others are for
# CUDA: the flash-attn package, the engine library's own flash kernel, its memory-efficient one.
Attention = Literal["auto", "flash-attn", "flash", "memory-efficient", "standard"]
ATTENTION_CHOICES: tuple[str, ...] = get_args(Attention)

# Format -> the module with its loader. "auto" takes the first that the artifact holds and this
# environment can run.
ENGINES = {
    "aoti-cuda": "runtime.engines.aoti_cuda",
    "onnx-cuda": "runtime.engines.onnx_cuda",
    "tensorrt": "runtime.engines.tensorrt",
    "onnx": "runtime.engines.onnx",
    "aoti": "runtime.engines.aoti",
    "torchscript": "runtime.engines.torchscript",
    "onnx-int8": "runtime.engines.onnx_int8",
}
# Coarser than the artifact's dtype: never taken but by name.
BY_NAME_ONLY = ("onnx-int8",)

V1_ATTENTION_VARIABLES = ("ESM2_V1_ATTENTION", "VIRNUCPRO_V1_ATTENTION")


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is and where it runs.

    Attributes:
        format: key of ``ENGINES``.
        artifact: the artifact's name.
        device: ``cpu`` or ``cuda``.
        dtype: of weights and outputs; ``int8`` means the linears' weights, outputs are float32.
        layers: exported layers, ascending.
        pool: how the ``pooled`` output pools, or None.
        attention: the kernel behind ``esm2::varlen_attention``.
        attention_reason: why faster ones were passed over; empty where there is none.
        library: the engine library and its version.
        synthetic: the weights are random; for trying the project only.
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


@dataclass(frozen=True)
class Outputs:
    """What an engine computed for one pack.

    Attributes:
        logits: ``[T, 33]``.
        representations: ``{layer: [T, E]}`` of the exported layers.
        pooled: ``[N, E]``, or None where the artifact was built without pooling.
    """

    logits: NDArray[np.floating]
    representations: dict[int, NDArray[np.floating]]
    pooled: NDArray[np.floating] | None

    def named(self) -> dict[str, NDArray[np.floating]]:
        """By the names of the manifest's signature."""
        tensors = {"logits": self.logits}
        tensors |= {f"representations.{k}": values for k, values in self.representations.items()}
        return tensors if self.pooled is None else {**tensors, "pooled": self.pooled}

    @classmethod
    def from_arrays(cls, names: list[str], arrays: list[NDArray[np.floating]]) -> "Outputs":
        """From an engine's outputs in the order of the manifest's signature."""
        by_name = dict(zip(names, arrays, strict=True))
        prefix = "representations."
        return cls(
            logits=by_name["logits"],
            representations={
                int(name.removeprefix(prefix)): array
                for name, array in by_name.items()
                if name.startswith(prefix)
            },
            pooled=by_name.get("pooled"),
        )


class Engine(Protocol):
    """A frozen model that runs packs. Engines are context managers."""

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


def load(
    artifact: str | os.PathLike[str],
    engine: str = "auto",
    device: str = "auto",
    attention: Attention | None = None,
    threads: int | None = None,
    concurrency: int = 1,
    tf32: bool = False,
    cuda_graphs: bool = False,
    check_files: bool = True,
    validate: bool = False,
) -> Engine:
    """Loads an engine of an artifact.

    Args:
        artifact: the folder that ``esm2-export build`` wrote.
        engine: ``"aoti-cuda"``, ``"onnx-cuda"``, ``"tensorrt"``, ``"onnx"``, ``"aoti"``,
            ``"torchscript"``, or ``"auto"``: the first of them that the artifact holds and that
            can run here. ``"onnx-int8"`` is taken by name only.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``: cuda where the engine's library sees a GPU.
        attention: ``"auto"``, the fastest kernel; ``"standard"``, the reference's arithmetic; or,
            on CUDA, ``"flash-attn"``, ``"flash"`` or ``"memory-efficient"``. None takes
            ``"standard"`` where ``ESM2_V1_ATTENTION`` (or ``VIRNUCPRO_V1_ATTENTION``) is true, else
            ``"auto"``. The choice and its reason are logged and stand in ``engine.spec``.
        threads: CPU threads of the engine; None takes one for each core.
        concurrency: how many packs share those threads. More than one raises the throughput of a
            stream on a CPU, and the time that a single pack takes. Engines that cannot take
            several packs at once run one.
        tf32: let float32 products on CUDA be rounded to TF32: faster, and a thousand times less
            exact than the parity gate allows.
        cuda_graphs: on CUDA, in engines that PyTorch runs: capture packs of at most 4,096 tokens as
            CUDA graphs, one for each bucket of sizes, and replay them.
        check_files: compare every file's SHA-256 with the manifest before loading.
        validate: run the artifact's golden proteins first (see ``runtime.selftest``): the engine is
            right on this machine, with these libraries.

    Raises:
        ArtifactError: the artifact is missing or damaged.
        UnsupportedError: the engine is whole but cannot run here.
        EngineError: the engine is not in the artifact, cannot be loaded, or ``validate`` found it
            wrong.
    """
    from runtime import manifest as manifests

    folder = Path(artifact)
    manifest = manifests.read(folder, check_files)
    name = _choose_engine(engine, manifest, device)
    if name not in manifest.engines:
        raise EngineError(
            f"artifact {folder} holds no engine {name!r}, it holds {', '.join(manifest.engines)}. "
            f"Build it with 'esm2-export build --target {name}'"
        )
    if device not in ("auto", "cpu", "cuda"):
        raise EngineError(f"device must be auto, cpu or cuda, got {device!r}")
    attention = attention or default_attention()
    if attention not in ATTENTION_CHOICES:
        raise EngineError(
            f"attention must be one of {', '.join(ATTENTION_CHOICES)}, got {attention!r}"
        )
    settings = Settings(attention, Threads(threads, concurrency), tf32, cuda_graphs)
    loaded: Engine = _engine_module(name).load(folder, manifest, device, settings)
    because = f" ({loaded.spec.attention_reason})" if loaded.spec.attention_reason else ""
    logger.info(
        "%s on %s: attention %s%s", name, loaded.spec.device, loaded.spec.attention, because
    )
    if validate:
        try:
            _validate(loaded, folder, manifest)
        except BaseException:
            loaded.close()
            raise
    return loaded


def _validate(engine: Engine, folder: Path, manifest: "Manifest") -> None:
    from runtime.selftest import selftest

    result = selftest(engine, folder, manifest)
    if not result.passed:
        raise EngineError(f"{result.worst_line()}. Do not use this engine here")


@dataclass(frozen=True)
class Threads:
    """CPU threads of an engine (None: one for each core) and how many packs share them."""

    total: int | None
    concurrency: int

    @property
    def per_pack(self) -> int:
        """At least one."""
        return max(1, (self.total or usable_cores()) // self.concurrency)


@dataclass(frozen=True)
class Settings:
    """What the caller of ``load`` wants of an engine; see there."""

    attention: Attention = "auto"
    threads: Threads = Threads(None, 1)
    tf32: bool = False
    cuda_graphs: bool = False


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_attention() -> Attention:
    """``"standard"`` where the environment asks for the reference's arithmetic."""
    asked = any(
        os.environ.get(variable, "").strip().lower() in ("1", "true", "yes", "on")
        for variable in V1_ATTENTION_VARIABLES
    )
    return "standard" if asked else "auto"


def _choose_engine(requested: str, manifest: "Manifest", device: str) -> str:
    if requested != "auto":
        if requested not in ENGINES:
            raise EngineError(f"engine must be auto, {', '.join(ENGINES)}, got {requested!r}")
        return requested
    reasons = []
    for name in ENGINES:
        if name not in manifest.engines:
            reasons.append(f"{name} is not in the artifact")
        elif name in BY_NAME_ONLY:
            reasons.append(f"{name} is coarser, so it must be asked for by name")
        elif reason := _engine_module(name).reason_against(manifest.engines[name], device):
            reasons.append(f"{name}: {reason}")
        else:
            return name
    raise EngineError(f"no engine of {manifest.name!r} runs here: {'; '.join(reasons)}")


def _engine_module(name: str) -> Any:
    return importlib.import_module(ENGINES[name])
