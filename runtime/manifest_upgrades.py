"""Manifests of older schemas as this version's; ``tests/data`` holds an artifact of each."""

from collections.abc import Callable
from typing import Any

SCHEMA_VERSION = 10
Fields = dict[str, Any]


def upgraded(fields: Fields) -> Fields:
    """The fields of an older schema as this version's."""
    while (version := fields["schema_version"]) < SCHEMA_VERSION:
        fields = UPGRADES[version](fields) | {"schema_version": version + 1}
    return fields


def _from_5(fields: Fields) -> Fields:
    """6 added digests of the blocks of large files, which smaller ones do without."""
    return fields


def _from_6(fields: Fields) -> Fields:
    """7 has a name where 6 had an English phrase."""
    golden = fields["golden"]
    own = {engine: _renamed(limits) for engine, limits in golden["own_limits"].items()}
    return fields | {"golden": golden | {"limits": _renamed(golden["limits"]), "own_limits": own}}


def _renamed(limits: dict[str, float]) -> dict[str, float]:
    return {
        "embedding" if name == "pooled by the runtime" else name: limit
        for name, limit in limits.items()
    }


def _from_7(fields: Fields) -> Fields:
    """8 says how large the packs were that an engine was compared on."""
    return fields


def _from_8(fields: Fields) -> Fields:
    """9 may have the outputs ``contacts`` and ``head``, and says of what weights."""
    return fields


def _from_9(fields: Fields) -> Fields:
    """10 may say how a quantised engine's activations were smoothed, and what stayed in float; and
    name a graph that pools on the card.
    """
    return fields


# Schema version -> the function that makes the next of it.
UPGRADES: dict[int, Callable[[Fields], Fields]] = {
    5: _from_5,
    6: _from_6,
    7: _from_7,
    8: _from_8,
    9: _from_9,
}
