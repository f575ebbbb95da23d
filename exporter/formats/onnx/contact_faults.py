"""Faults of ``esm2::AddContacts``: another body, under a name that no native library knows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from exporter.formats.contact_faults import NOT_SYMMETRIC, WITH_EOS, WITHOUT_AVERAGE
from exporter.formats.onnx import contacts
from exporter.planted import Fault, GraphFault, needs_contacts


def _edited(*edits: tuple[str, str]) -> Any:
    @contextmanager
    def plant(packed: Any) -> Iterator[None]:
        body = contacts._BODY
        for old, new in edits:
            assert old in body
            body = body.replace(old, new)
        with (
            patch.object(contacts, "OP_TYPE", "AddOtherContacts"),
            patch.object(contacts, "_BODY", body),
        ):
            yield

    return plant


def contact_faults() -> list[Fault]:
    """Of ONNX files."""
    last = "9223372036854775807"
    planted = {
        WITHOUT_AVERAGE: _edited(
            ("corrected = Sub(symmetric, average)", "corrected = Identity(symmetric)")
        ),
        NOT_SYMMETRIC: _edited(
            ("symmetric = Add(maps, transposed)", "symmetric = Add(maps, maps)")
        ),
        WITH_EOS: _edited(
            ("int64[2] {{1, 1}}", "int64[2] {{2, 2}}"),
            ("int64[2] {{-1, -1}}", f"int64[2] {{{{{last}, {last}}}}}"),
            ("Slice(kept_tokens, one, last, zero)", "Slice(kept_tokens, two, all, zero)"),
            ("  flat =", "  two = Constant <value = int64[1] {{2}}> ()\n  flat ="),
        ),
    }
    return [
        GraphFault(name, "contacts", plant, applies=needs_contacts)
        for name, plant in planted.items()
    ]
