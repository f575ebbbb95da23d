"""Which layers, and what of them: from one forward of a pack to an array for each protein."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.engine import Engine
from runtime.errors import InputError
from runtime.manifest_schema import Manifest
from runtime.packing import PackedBatch
from runtime.pairs import CONTACTS, as_map, check_contacts, contacts_of
from runtime.pooling import Pool, pool, residue_rows
from runtime.runner import check_finite, several_of_pack
from runtime.windows import Values


@dataclass(frozen=True)
class Wanted:
    """What becomes of a protein.

    Attributes:
        layers: ascending, as the keys of fair-esm's dicts.
        include: of ``mean``, ``per_tok``, ``bos`` and ``contacts``.
        width: E.
        dtype: of representations.
    """

    layers: tuple[int, ...]
    include: frozenset[str]
    width: int
    dtype: np.dtype[np.floating]

    def of_pack(self, engine: Engine, batch: PackedBatch) -> list[Values]:
        """Runs a pack once.

        Returns:
            For each protein ``[layers, R, E]``: R is a row of BOS, one of the mean and L of the
            residues, those of them that are wanted. With contacts the same in one row, float32,
            and then its pairs.

        Raises:
            NonFiniteError: the engine returned NaN or Inf. The mean of no residues is NaN, as in
                fair-esm's script.
            EngineError: the engine failed.
        """
        if not self.include & {"per_tok", CONTACTS}:
            return self._pooled(engine, batch)
        names = [f"representations.{layer}" for layer in self.layers]
        names += [CONTACTS] if CONTACTS in self.include else []
        outputs = engine.run(batch, names)
        representations = outputs.representations
        bounds = batch.cu_seqlens.tolist()
        spans = list(zip(bounds[:-1], bounds[1:], strict=True))
        of_layers = []
        for layer in self.layers:
            rows = representations[layer]
            check_finite(batch, rows, "none")
            means = pool(rows, batch.cu_seqlens, "mean") if "mean" in self.include else None
            of_layers.append([
                self._of_protein(rows, means, protein, *span) for protein, span in enumerate(spans)
            ])  # fmt: skip
        found = [np.stack(layers) for layers in zip(*of_layers, strict=True)]
        if CONTACTS not in self.include:
            return found
        pairs = contacts_of(outputs, batch)
        return [np.append(*both) for both in zip(found, pairs, strict=True)]

    def _pooled(self, engine: Engine, batch: PackedBatch) -> list[Values]:
        """Of proteins alone: rows of residues stay where they are.

        A card's need not come to the host. BOS and the mean of all others hold every row, so NaN in
        any is seen.
        """
        poolings: dict[str, Pool] = {"bos": "cls", "mean": "mean"}
        kept = [how for name, how in poolings.items() if name in self.include]
        seen: dict[Pool, None] = dict.fromkeys([*kept, "cls", "mean-with-eos"])
        wanted = [(layer, how) for layer in self.layers for how in seen]
        found = dict(zip(wanted, several_of_pack(engine, batch, wanted), strict=True))
        of_layers = [np.stack([found[layer, how] for how in kept], 1) for layer in self.layers]
        return list(np.stack(of_layers, axis=1))

    def result(self, label: str, values: Values, num_residues: int) -> dict[str, Any]:
        """The dict that fair-esm's script saves (scripts/extract.py:104-127), of views of arrays.

        Args:
            label: of the protein.
            values: of ``of_pack``.
            num_residues: L.
        """
        bos, mean = ("bos" in self.include, "mean" in self.include)
        contacts = None
        if CONTACTS in self.include:
            rows = bos + mean + num_residues * ("per_tok" in self.include)
            shape = (len(self.layers), rows, self.width)
            values, contacts = np.split(values, [math.prod(shape)])
            values = values.reshape(shape).astype(self.dtype)
        by_layer = dict(zip(self.layers, values, strict=True))
        result: dict[str, Any] = {"label": label}
        if "per_tok" in self.include:
            result["representations"] = {n: rows[bos + mean :] for n, rows in by_layer.items()}
        if mean:
            result["mean_representations"] = {n: rows[int(bos)] for n, rows in by_layer.items()}
        if bos:
            result["bos_representations"] = {n: rows[0] for n, rows in by_layer.items()}
        if contacts is not None:
            result[CONTACTS] = as_map(contacts)
        return result

    def _of_protein(
        self, rows: Values, means: Values | None, protein: int, start: int, end: int
    ) -> Values:
        parts = [rows[:0]]
        if "bos" in self.include:
            parts.append(rows[start : start + 1])
        if means is not None:
            parts.append(means[protein : protein + 1])
        if "per_tok" in self.include:
            parts.append(rows[residue_rows(start, end)])
        return np.concatenate(parts)


def wanted_of(manifest: Manifest, repr_layers: Sequence[int], include: Sequence[str]) -> Wanted:
    """What an artifact can give.

    Args:
        manifest: of the artifact.
        repr_layers: -1 is the last (scripts/extract.py:75).
        include: of ``mean``, ``per_tok``, ``bos`` and ``contacts``.

    Raises:
        InputError: a layer that the model does not have, or that the artifact does not export.
        UnsupportedError: contacts, of an artifact without them.
    """
    if CONTACTS in include:
        check_contacts(manifest)
    count = manifest.architecture.num_layers + 1
    if wrong := [layer for layer in repr_layers if not -count <= layer < count]:
        raise InputError(
            f"--repr_layers {' '.join(map(str, wrong))}: {manifest.architecture.name} has layers 0 "
            f"to {count - 1}, and -1 to {-count} from the last"
        )
    layers = sorted({layer % count for layer in repr_layers})
    if missing := [layer for layer in layers if layer not in manifest.layers]:
        every = ",".join(map(str, sorted({*layers, *manifest.layers})))
        raise InputError(
            f"artifact {manifest.name!r} does not export {_layers(missing)}, it exports "
            f"{_layers(manifest.layers)}. Build one that does: 'esm2-export build "
            f"{_weights(manifest)} --layers {every}'"
        )
    dtype: np.dtype[np.floating] = np.dtype(
        np.float16 if manifest.dtype == "float16" else np.float32
    )
    return Wanted(tuple(layers), frozenset(include), manifest.architecture.embed_dim, dtype)


def _layers(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def _weights(manifest: Manifest) -> str:
    """The option of ``esm2-export build`` that the weights came by."""
    weights = manifest.weights
    if weights.kind == "checkpoint":
        return f"--checkpoint {weights.source}"
    return f"--{'synthetic' if weights.kind == 'synthetic' else 'model'} {weights.source}"
