"""Faults of the contact head: in the op itself, in its arguments, and in whose pairs are whose.

A fault of the op is another op, whose name no native library knows: PyTorch runs its kernel here,
and ONNX Runtime the body that the file brings.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from exporter.formats.onnx import contacts as onnx_contacts
from exporter.model import contact_head
from exporter.model.contact_head import PackedContactHead
from exporter.model.packed_forward import PackedESM2
from exporter.parity.prove.replaced import replaced
from exporter.planted import Fault, GraphFault
from runtime.manifest import Manifest
from runtime.ops.contacts import SCHEMA
from runtime.pairs import CONTACTS

# Of the residues' maps A [H, n, n] and the heads' weights w [H] a layer's share [n, n].
Share = Callable[[Tensor, Tensor], Tensor]


def _needs_contacts(manifest: Manifest) -> str:
    return "" if manifest.gives(CONTACTS) else "the artifact gives no contacts"


def _corrected(maps: Tensor, weight: Tensor) -> Tensor:
    sums = maps.sum(-1) + maps.sum(-2)
    average = torch.einsum("h,hi,hj->ij", weight / sums.sum(-1), sums, sums)
    total = torch.einsum("h,hij->ij", weight, maps)
    return total + total.T - average


def _without_average(maps: Tensor, weight: Tensor) -> Tensor:
    total = torch.einsum("h,hij->ij", weight, maps)
    return total + total.T


def _not_symmetric(maps: Tensor, weight: Tensor) -> Tensor:
    sums = 2 * maps.sum(-1)
    average = torch.einsum("h,hi,hj->ij", weight / sums.sum(-1), sums, sums)
    return 2 * torch.einsum("h,hij->ij", weight, maps) - average


def _op(share: Share, first: int) -> Callable[..., Tensor]:
    """``esm2::add_contacts`` with another share, of the tokens from the ``first`` on."""

    def add(
        logits: Tensor, q: Tensor, k: Tensor, cu_seqlens: Tensor, softmax_scale: float,
        is_kept: Tensor, weight: Tensor,
    ) -> Tensor:  # fmt: skip
        found = []
        for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
            length = max(0, end - start - 2)
            some = slice(first, first + length)
            query, key = (x[start:end].to(logits.dtype).transpose(0, 1) for x in (q, k))
            maps = torch.softmax(query @ key.transpose(1, 2) * softmax_scale, -1)[:, some, some]
            kept = is_kept[start:end][some].to(logits.dtype)
            of_pairs = share(maps * kept.unsqueeze(-1) * kept, weight)
            found.append(of_pairs[torch.ones_like(of_pairs, dtype=torch.bool).triu()])
        return logits + torch.cat(found)

    return add


def _in_the_op(name: str, share: Share, first: int, *edits: tuple[str, str]) -> Any:
    """``edits`` are those of the ONNX body that make the same of it."""

    @contextmanager
    def plant(packed: PackedESM2) -> Iterator[None]:
        qualified = f"esm2::{name}"
        if not hasattr(torch.ops.esm2, name):
            torch.library.define(qualified, SCHEMA)
            torch.library.impl(qualified, "default", _op(share, first))
            torch.library.register_fake(qualified, lambda logits, *_: torch.empty_like(logits))
        body = onnx_contacts._BODY
        for old, new in edits:
            assert old in body
            body = body.replace(old, new)
        with (
            patch.object(contact_head, "OP", getattr(torch.ops.esm2, name)),
            patch.object(onnx_contacts, "OP_TYPE", name),
            patch.object(onnx_contacts, "_BODY", body),
        ):
            yield

    return plant


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
    """Of artifacts that give contacts."""
    everything = "9223372036854775807"
    planted = [
        (
            "no average product correction",
            _in_the_op(
                "contacts_without_average", _without_average, 1,
                ("corrected = Sub(symmetric, average)", "corrected = Identity(symmetric)"),
            ),
        ),
        (
            "maps not made symmetric",
            _in_the_op(
                "contacts_not_symmetric", _not_symmetric, 1,
                ("symmetric = Add(maps, transposed)", "symmetric = Add(maps, maps)"),
            ),
        ),
        (
            "EOS kept in the place of the first residue",
            _in_the_op(
                "contacts_with_eos", _corrected, 2,
                ("int64[2] {{1, 1}}", "int64[2] {{2, 2}}"),
                ("int64[2] {{-1, -1}}", f"int64[2] {{{{{everything}, {everything}}}}}"),
                ("Slice(kept_tokens, one, last, zero)", "Slice(kept_tokens, two, all, zero)"),
                ("  flat =", "  two = Constant <value = int64[1] {{2}}> ()\n  flat ="),
            ),
        ),
        ("weights of the next head", _weights_of_the_next_head),
        ("pairs of other proteins", _pairs_of_others),
    ]  # fmt: skip
    return [GraphFault(name, "contacts", plant, applies=_needs_contacts) for name, plant in planted]
