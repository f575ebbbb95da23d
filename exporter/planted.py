"""The kinds of faults that a proof plants in a good artifact."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from runtime.manifest import Architecture, Manifest

if TYPE_CHECKING:
    from exporter.model.packed_forward import PackedESM2

Group = Literal[
    "graph", "packing", "token dropout", "weights", "tokenizer and pooling", "manifest"
]  # fmt: skip
State = Mapping[str, Tensor]


def _everywhere(manifest: Manifest) -> str:
    """``applies`` says why a fault cannot be planted in an artifact; empty if it can."""
    return ""


@dataclass(frozen=True)
class GraphFault:
    """``plant(packed)``: a context in which ``packed`` is exported with the fault."""

    name: str
    group: Group
    plant: "Callable[[PackedESM2], Any]"
    applies: Callable[[Manifest], str] = _everywhere


@dataclass(frozen=True)
class WeightsFault:
    """``change(state, architecture)``: the tensors of ``weights.safetensors`` that are replaced."""

    name: str
    group: Group
    change: Callable[[State, Architecture], dict[str, Tensor]]
    applies: Callable[[Manifest], str] = _everywhere


@dataclass(frozen=True)
class RuntimeFault:
    """``plant()``: a context in which the runtime has the fault."""

    name: str
    group: Group
    plant: Callable[[], Any]
    applies: Callable[[Manifest], str] = _everywhere


@dataclass(frozen=True)
class ManifestFault:
    """``change(manifest)``: another manifest; ``sealed`` says whether its digest is right."""

    name: str
    group: Group
    change: Callable[[Manifest], Manifest]
    sealed: bool = True
    applies: Callable[[Manifest], str] = _everywhere


@dataclass(frozen=True)
class Int8WeightsFault:
    """``change(tensors, architecture)``: what is replaced in ``weights.int8.safetensors``."""

    name: str
    group: Group
    change: Callable[[State, Architecture], dict[str, Tensor]]
    applies: Callable[[Manifest], str] = _everywhere


Fault = GraphFault | WeightsFault | Int8WeightsFault | RuntimeFault | ManifestFault
