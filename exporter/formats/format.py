"""What the exporter knows of an engine format: one descriptor each, in the format's own folder.

A format imports its libraries when it is used, so descriptors are cheap to list.
"""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.manifest_schema import EngineEntry, Manifest, Profile
from runtime.packing import PackedBatch
from runtime.pooling import Pool

if TYPE_CHECKING:
    from exporter.planted import Fault

# Tokens of a pack whose attention is kept: its float64 in the gate takes their square.
MAX_ATTENDED = 700
# The native attention op, compiled for PyTorch and for ONNX Runtime (``exporter.formats.native``).
TORCH_LIBRARY, ONNXRUNTIME_LIBRARY = "libesm2_ops.so", "libesm2_ort.so"


@dataclass
class Observed:
    """What was seen inside an engine while one pack ran.

    Attributes:
        positions: each ``[T]`` that was multiplied with the rotary frequencies.
        attended: q, k, v and what each call of the attention op gave, ``[T, H, D]``; in half
            precision, of packs up to ``MAX_ATTENDED`` tokens, where ops can be watched.
        calls: ``(cu_seqlens, max_seqlen)`` of each call of the attention op.
        token_offsets: ``[N, max_seqlen]`` that packed attention of ONNX Runtime gets, each once.
        grids: ``sources`` ``[N, max_seqlen]`` and ``cells`` ``[T]`` by which TensorRT's graph pads
            and comes back (``exporter.formats.tensorrt.graph``), each once.
        pooled: each way of pooling, rows ``[T, X]``, and what the engine's graph for pooling
            made of them, ``[N, X]``.
    """

    positions: list[NDArray[Any]] = field(default_factory=list)
    attended: list[tuple[NDArray[np.float64], ...]] = field(default_factory=list)
    calls: list[tuple[list[int], int]] = field(default_factory=list)
    token_offsets: list[NDArray[Any]] = field(default_factory=list)
    grids: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)
    pooled: list[tuple[Pool, NDArray[Any], NDArray[Any]]] = field(default_factory=list)


@dataclass(frozen=True)
class StandIn:
    """An artifact whose only engine runs another's graph on a CPU; its manifest names both.

    Attributes:
        folder: of the artifact.
        manifest: of it, with the outputs of the engine that it stands in for.
        engine: the format that runs the graph.
        profiles: the largest packs that it takes, where the other engine has plans.
    """

    folder: Path
    manifest: Manifest
    engine: str
    profiles: tuple[Profile, ...] = ()


@dataclass(frozen=True)
class TritonBackend:
    """How Triton Inference Server serves an engine.

    Attributes:
        name: of the backend.
        write: ``write(source, folder)``: the model file, from the engine's own, into the folder of
            a version.
        kind: of the instances, as in ``ModelInstanceGroup``.
        cuda_options: ``cuda_options()`` of ONNX Runtime's CUDA provider.
        needs_op_library: nothing else registers its attention.
    """

    name: str
    write: Callable[[Path, Path], None]
    kind: str = "KIND_CPU"
    cuda_options: Callable[[], dict[str, str]] = dict
    needs_op_library: bool = False


class Export(Protocol):
    """Writes an engine's file beside ``weights.safetensors``; options are the format's own."""

    def __call__(self, packed: Any, folder: Path, **options: Any) -> EngineEntry: ...  # noqa: D102


@dataclass(frozen=True)
class Format:
    """An engine format.

    Attributes:
        name: as in ``runtime.engines.table``.
        export: see ``Export``.
        observe: ``observe(folder, manifest, batch)``: a context in which the engine runs ``batch``
            and whose value then says what it did inside.
        check: ``check(longest, **options)`` raises ExportError, before minutes are spent on other
            formats, where it cannot be built, or not for proteins of ``longest`` tokens.
        op_library: the native attention op that it loads (see ``native``); None for the kernels of
            the engine library.
        stand_in: ``stand_in(folder, manifest)``: a context with a ``StandIn``, for engines whose
            graph a machine without a card can run; None where there is nothing to run.
        float32_twin: where a fault is planted that this format's rounding hides; None for itself.
        own_faults: ``own_faults()``: faults that only this format can have.
        triton: None where Triton has no backend for it.
        without_contacts: why it cannot give contacts; empty where it can.
    """

    name: str
    export: Export
    observe: Callable[[Path, Manifest, PackedBatch], AbstractContextManager[Observed]]
    check: Callable[..., None] | None = None
    op_library: str | None = None
    stand_in: Callable[[Path, Manifest], AbstractContextManager[StandIn]] | None = None
    float32_twin: str | None = None
    own_faults: "Callable[[], list[Fault]]" = list
    triton: TritonBackend | None = None
    without_contacts: str = ""


def lazily(place: str) -> Callable[..., Any]:
    """The function at ``module:name``, whose module is imported when it is called."""
    module, _, name = place.partition(":")

    def call(*args: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **options)

    return call
