"""The kinds of faults that a proof plants in a good artifact."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from runtime.manifest_schema import Architecture, Manifest
from runtime.pairs import CONTACTS

if TYPE_CHECKING:
    from exporter.model.packed_forward import PackedESM2

Group = Literal[
    "graph", "contacts", "packing", "length and size", "state", "production", "half precision",
    "token dropout", "weights", "head",
    "tokenizer and pooling", "manifest", "loader",
]  # fmt: skip
State = Mapping[str, Tensor]


def _everywhere(manifest: Manifest) -> str:
    """``applies`` says why a fault cannot be planted in an artifact; empty if it can."""
    return ""


def needs_contacts(manifest: Manifest) -> str:
    """See ``_everywhere``: the artifact must give contacts."""
    return "" if manifest.gives(CONTACTS) else "the artifact gives no contacts"


@dataclass(frozen=True)
class _Planted:
    """What every fault says of itself.

    Attributes:
        name: for people.
        group: of the report.
        applies: why it cannot be planted in an artifact; empty if it can.
        packs: on which it shows, where the few that every fault is shown do not.
    """

    name: str
    group: Group
    applies: Callable[[Manifest], str] = field(default=_everywhere, kw_only=True)
    packs: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class GraphFault(_Planted):
    """``plant(packed)``: a context in which ``packed`` is exported with the fault."""

    plant: "Callable[[PackedESM2], Any]"


@dataclass(frozen=True)
class WeightsFault(_Planted):
    """``change(state, architecture)``: the tensors of ``weights.safetensors`` that are replaced."""

    change: Callable[[State, Architecture], dict[str, Tensor]]


@dataclass(frozen=True)
class RuntimeFault(_Planted):
    """``plant()``: a context in which the runtime has the fault."""

    plant: Callable[[], Any]


@dataclass(frozen=True)
class ManifestFault(_Planted):
    """``change(manifest)``: another manifest; ``sealed`` says whether its digest is right."""

    change: Callable[[Manifest], Manifest]
    sealed: bool = True


@dataclass(frozen=True)
class Int8WeightsFault(_Planted):
    """``change(tensors, architecture)``: what is replaced in ``weights.int8.safetensors``."""

    change: Callable[[State, Architecture], dict[str, Tensor]]


Fault = GraphFault | WeightsFault | Int8WeightsFault | RuntimeFault | ManifestFault
