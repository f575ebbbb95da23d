"""Faults around the contact head's op: in its arguments, and in whose pairs are whose."""

from collections.abc import Iterable
from typing import Any

from exporter.model.contact_head import PackedContactHead
from exporter.model.packed_forward import PackedESM2
from exporter.parity.prove.replaced import replaced
from exporter.planted import Fault, GraphFault, needs_contacts


def _weights_of_the_next_head(packed: PackedESM2) -> Any:
    original = PackedContactHead.weight_of
    return replaced(
        PackedContactHead, "weight_of", lambda self, depth: original(self, depth).roll(1)
    )


def _pairs_of_others(packed: PackedESM2) -> Any:
    original = PackedContactHead.forward
    return replaced(
        PackedContactHead, "forward", lambda self, logits: original(self, logits.flip(0))
    )


def contact_faults() -> Iterable[Fault]:
    """Of artifacts that give contacts; those of the op itself are their formats' own."""
    planted = [
        ("weights of the next head", _weights_of_the_next_head),
        ("pairs of other proteins", _pairs_of_others),
    ]
    return [GraphFault(name, "contacts", plant, applies=needs_contacts) for name, plant in planted]
