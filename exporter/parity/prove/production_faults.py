"""Faults between an engine and the file that a user reads: no pack of the gate's meets them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from exporter.parity.prove.replaced import replaced
from exporter.parity.truth.packs import STREAM
from exporter.planted import Fault, RuntimeFault
from runtime import runner
from runtime.readers.records import Prepared, Rejection, prepare
from runtime.results import Embedding, InOrder
from runtime.windows import Pack, Window
from runtime.writers import writing
from runtime.writers.blocks import blocks

Plant = Callable[[], Any]


def _in_order_of_packs() -> Any:
    def as_they_come(self: InOrder, pack: Pack, values: Any) -> Iterator[Embedding]:
        for _, embedding in self.whole(pack, values):
            yield embedding

    return replaced(InOrder, "add", as_they_come)


def _next_window_forgets() -> Any:
    original = Window.pack

    def mixing_up(self: Window, members: Iterable[int], records_before: int) -> Pack:
        pack = original(self, members, records_before)
        if records_before and len(pack.holders) > 1:
            pack.holders[:2] = pack.holders[1::-1]
        return pack

    return replaced(Window, "pack", mixing_up)


def _long_ones_cut() -> Any:
    def cutting(record: Any, options: Any) -> Prepared | Rejection:
        prepared = prepare(record, options)
        if isinstance(prepared, Rejection):
            return prepared
        return replace(prepared, tokens=prepared.tokens[:300])

    return replaced(runner, "prepare", cutting)


def _residues_shifted() -> Any:
    return replaced(runner, "residue_rows", lambda start, end: slice(start, end - 2))


def _written_in_float16() -> Any:
    def rounding(embeddings: Iterable[Embedding]) -> Any:
        return blocks(
            Embedding(e.id, e.num_tokens, e.values.astype(np.float16).astype(e.values.dtype))
            for e in embeddings
        )

    return replaced(writing, "blocks", rounding)


def production_faults() -> Iterable[Fault]:
    """Of reading, packing, running several packs, ordering and writing."""
    planted: list[tuple[str, Plant]] = [
        ("results in the order of packs", _in_order_of_packs),
        ("two results exchanged from the second window on", _next_window_forgets),
        ("long proteins cut", _long_ones_cut),
        ("residues shifted by one", _residues_shifted),
        ("files rounded to float16", _written_in_float16),
    ]
    return [RuntimeFault(name, "production", plant, packs=(STREAM,)) for name, plant in planted]
