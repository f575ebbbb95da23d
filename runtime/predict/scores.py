"""A head's numbers as what they mean: probabilities of labels, or values; in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from runtime.engine import Engine
from runtime.errors import UnsupportedError
from runtime.manifest_schema import HEAD, HeadEntry, Manifest
from runtime.packing import PackedBatch
from runtime.pooling import Pool, residue_rows
from runtime.runner import check_finite

Floats = NDArray[np.floating]
# Of a label that is judged alone: from here on it is given.
GIVEN = 0.5


@dataclass(frozen=True)
class Prediction:
    """What a head says of one protein.

    Attributes:
        id: of the record.
        labels: C names, the columns of ``scores``.
        scores: ``[C]`` float64, or ``[L, C]`` of its residues: probabilities of one label among
            all, probabilities of each label alone, or values of a regression. NaN where a linear
            probe reads the mean of no residues.
        problem_type: which of the three, by transformers' names.
    """

    id: str
    labels: tuple[str, ...]
    scores: Floats
    problem_type: str

    @cached_property
    def label(self) -> "str | list[str] | list[list[str]] | None":
        """The most probable label; of several that are judged alone those of at least 0.5.

        One for each residue where the head reads residues; None of a regression. Empty of NaN.
        """
        if self.problem_type == "regression":
            return None
        rows = np.atleast_2d(self.scores)
        if self.problem_type == "multi_label_classification":
            several = [[self.labels[i] for i in np.flatnonzero(row >= GIVEN)] for row in rows]
            return several if self.scores.ndim == 2 else several[0]
        each = ["" if np.isnan(row).any() else self.labels[row.argmax()] for row in rows]
        return each if self.scores.ndim == 2 else each[0]

    @property
    def probability(self) -> "float | Floats":
        """The largest score; ``[L]`` of residues."""
        largest = self.scores.max(axis=-1)
        return largest if self.scores.ndim == 2 else float(largest)


def head_of(manifest: Manifest) -> HeadEntry:
    """Raises UnsupportedError for an artifact without a head."""
    if manifest.head is None:
        raise UnsupportedError(
            f"artifact {manifest.name!r} has no head, so it gives embeddings and no predictions. "
            "Build one from a fine-tuned checkpoint (EsmForSequenceClassification, "
            "EsmForTokenClassification, a LoRA adapter), or with --probe FILE"
        )
    return manifest.head


def scores_of(rows: NDArray[np.floating], problem_type: str) -> Floats:
    """A head's numbers ``[..., C]`` to probabilities, or to values.

    Softmax over labels of which one is meant, the logistic function where each is judged alone.
    """
    wide = rows.astype(np.float64)
    if problem_type == "regression":
        return wide
    if problem_type == "multi_label_classification":
        logistic: Floats = 0.5 * (1 + np.tanh(wide / 2))
        return logistic
    exponentials = np.exp(wide - wide.max(axis=-1, keepdims=True))
    softmax: Floats = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return softmax


def scores_of_pack(engine: Engine, head: HeadEntry) -> Callable[[PackedBatch], list[Floats]]:
    """Gives ``[C]`` of each protein of a pack, or ``[L, C]``: BOS and EOS are left out."""
    # Of the mean of no residues a probe gives NaN, and that is no fault.
    how: Pool = "none" if head.rows == "tokens" else "mean" if head.pool == "mean" else "cls"

    def run(batch: PackedBatch) -> list[Floats]:
        rows = engine.run(batch, [HEAD]).tensors[HEAD]
        check_finite(batch, rows, how)
        scores = scores_of(rows, head.problem_type)
        if head.rows == "proteins":
            return list(scores)
        bounds = batch.cu_seqlens.tolist()
        return [
            scores[residue_rows(start, end)].copy()
            for start, end in zip(bounds[:-1], bounds[1:], strict=True)
        ]

    return run
