"""A pack in parts, where an engine has a largest one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.engine import Engine, Outputs
from runtime.engines.base import LoadedEngine
from runtime.errors import UnsupportedError
from runtime.manifest_schema import POOLED, Profile, Signature
from runtime.packing import PackedBatch
from runtime.pooling import Pool, pool


class InParts(LoadedEngine):
    """An engine that takes any pack, run by one that takes those which a profile holds.

    It pools on the host, in float64, so that the other need not.

    Args:
        engine: the one that runs; closed with this one.
        profiles: in ascending order of ``max_seqlen``.
        signature: the artifact's, whose outputs this engine has.
    """

    def __init__(self, engine: Engine, profiles: Sequence[Profile], signature: Signature):
        super().__init__(engine.spec, engine.concurrency)
        self._engine = engine
        self._profiles = profiles
        self._signature = signature

    def unsupported_reasons(self, batch: PackedBatch) -> list[str]:
        """See ``Engine``: a protein longer than every profile."""
        return [
            f"{batch.name(place)} has {length} tokens, engine {self.spec.format!r} of this "
            f"artifact takes up to {self._longest}. Build it with a larger --max-seqlen, or take "
            "another engine"
            for place, length in enumerate(np.diff(batch.cu_seqlens))
            if length > self._longest
        ]

    def run(self, batch: PackedBatch, names: Sequence[str] | None = None) -> Outputs:
        """See ``Engine.run``."""
        self.require_usable()
        parts = self._split(batch)
        wanted = [o for o in self._signature.outputs if names is None or o.name in names]
        last = f"representations.{self.spec.layers[-1]}"
        computed = [last if output.name == POOLED else output.name for output in wanted]
        outputs = [self._engine.run(part.batch, list(dict.fromkeys(computed))) for part in parts]
        tensors = {}
        for output, name in zip(wanted, computed, strict=True):
            join = join_rows if output.name == POOLED or output.rows == "tokens" else join_proteins
            tensors[output.name] = join(batch, parts, [o.tensors[name] for o in outputs])
        if POOLED in tensors:
            how: Pool = self.spec.pool  # type: ignore[assignment]
            tensors[POOLED] = pool(tensors[POOLED], batch.cu_seqlens, how)
        return Outputs(tensors)

    def embed_several(
        self, batch: PackedBatch, wanted: Sequence[tuple[int, Pool]]
    ) -> list[NDArray[np.floating]]:
        """See ``Engine.embed_several``."""
        self.require_usable()
        parts = self._split(batch)
        of_parts = [self._engine.embed_several(part.batch, wanted) for part in parts]
        return [
            (join_rows if how == "none" else join_proteins)(batch, parts, outputs)
            for (_, how), outputs in zip(wanted, zip(*of_parts, strict=True), strict=True)
        ]

    def close(self) -> None:
        """See ``Engine.close``."""
        super().close()
        self._engine.close()

    @property
    def _longest(self) -> int:
        return max(profile.max_seqlen for profile in self._profiles)

    def _split(self, batch: PackedBatch) -> "list[Part]":
        if reasons := self.unsupported_reasons(batch):
            raise UnsupportedError("; ".join(reasons))
        return split(batch, self._profiles)


@dataclass(frozen=True)
class Part:
    """Some proteins of a pack, as a pack of their own.

    Attributes:
        batch: the proteins.
        proteins: ``[n]``, their places in the whole pack.
        rows: ``[t]``, the places of their tokens in the whole pack.
    """

    batch: PackedBatch
    proteins: NDArray[np.int64]
    rows: NDArray[np.int64]


def split(batch: PackedBatch, profiles: Sequence[Profile]) -> list[Part]:
    """The pack whole where a profile holds it; else in parts of proteins of like length.

    Args:
        batch: each of whose proteins a profile holds.
        profiles: in ascending order of ``max_seqlen``.
    """
    if holding(profiles, batch) is not None:
        return [Part(batch, np.arange(batch.num_proteins), np.arange(batch.num_tokens))]
    lengths = np.diff(batch.cu_seqlens).astype(np.int64)
    parts: list[Part] = []
    begin, num_tokens = 0, 0
    # Ascending, so that the longest of a part is its last.
    order = np.argsort(lengths, kind="stable")
    for end, protein in enumerate(order):
        length = int(lengths[protein])
        grown = num_tokens + length, end - begin + 1, length
        if begin < end and not any(profile.holds(*grown) for profile in profiles):
            parts.append(_part(batch, np.sort(order[begin:end])))
            begin, num_tokens = end, 0
        num_tokens += length
    parts.append(_part(batch, np.sort(order[begin:])))
    return parts


def holding(profiles: Sequence[Profile], batch: PackedBatch) -> int | None:
    """The place of the first profile that holds the pack, or None."""
    for place, profile in enumerate(profiles):
        if profile.holds(batch.num_tokens, batch.num_proteins, batch.max_seqlen):
            return place
    return None


def join_rows(
    batch: PackedBatch, parts: Sequence[Part], outputs: Sequence[NDArray[np.floating]]
) -> NDArray[np.floating]:
    """``[T, X]`` of the whole pack from ``[t, X]`` of each part."""
    places = [part.rows for part in parts]
    return outputs[0] if len(parts) == 1 else _scattered(batch.num_tokens, places, outputs)


def join_proteins(
    batch: PackedBatch, parts: Sequence[Part], outputs: Sequence[NDArray[np.floating]]
) -> NDArray[np.floating]:
    """``[N, X]`` of the whole pack from ``[n, X]`` of each part."""
    places = [part.proteins for part in parts]
    return outputs[0] if len(parts) == 1 else _scattered(batch.num_proteins, places, outputs)


def _scattered(
    size: int, places: Sequence[NDArray[np.int64]], outputs: Sequence[NDArray[np.floating]]
) -> NDArray[np.floating]:
    joined = np.empty((size, outputs[0].shape[1]), outputs[0].dtype)
    for rows, output in zip(places, outputs, strict=True):
        joined[rows] = output
    return joined


def _part(batch: PackedBatch, proteins: NDArray[np.int64]) -> Part:
    starts, ends = batch.cu_seqlens[proteins], batch.cu_seqlens[proteins + 1]
    spans = list(zip(starts, ends, strict=True))
    tokens = [batch.input_ids[start:end] for start, end in spans]
    rows = np.concatenate([np.arange(start, end) for start, end in spans])
    names = [batch.names[protein] for protein in proteins] if batch.names else []
    return Part(PackedBatch.from_tokens(tokens, names), proteins, rows)
