"""Faults of ``esm2::add_contacts`` in PyTorch: another op, which no native library knows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from exporter.model import contact_head
from exporter.planted import Fault, GraphFault, needs_contacts
from runtime.ops.contacts import SCHEMA

# Of the residues' maps A [H, n, n] and the heads' weights w [H] a layer's share [n, n].
Share = Callable[[Tensor, Tensor], Tensor]


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


def _planted(name: str, share: Share, first: int) -> Any:
    @contextmanager
    def plant(packed: Any) -> Iterator[None]:
        if not hasattr(torch.ops.esm2, name):
            qualified = f"esm2::{name}"
            torch.library.define(qualified, SCHEMA)
            torch.library.impl(qualified, "default", _op(share, first))
            torch.library.register_fake(qualified, lambda logits, *_: torch.empty_like(logits))
        with patch.object(contact_head, "OP", getattr(torch.ops.esm2, name)):
            yield

    return plant


# Names of what the ONNX body can have, too.
WITHOUT_AVERAGE = "no average product correction"
NOT_SYMMETRIC = "maps not made symmetric"
WITH_EOS = "EOS kept in the place of the first residue"


def contact_faults() -> list[Fault]:
    """Of engines that PyTorch runs."""
    planted = {
        WITHOUT_AVERAGE: _planted("contacts_without_average", _without_average, 1),
        NOT_SYMMETRIC: _planted("contacts_not_symmetric", _not_symmetric, 1),
        WITH_EOS: _planted("contacts_with_eos", _corrected, 2),
    }
    return [
        GraphFault(name, "contacts", plant, applies=needs_contacts)
        for name, plant in planted.items()
    ]
