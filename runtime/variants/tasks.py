"""What the runner is given in place of proteins: variants, and proteins to be masked."""

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from runtime.engine import Engine
from runtime.lm_head import AMINO_ACID_IDS, log_softmax, logits_of
from runtime.packing import PackedBatch
from runtime.pooling import residue_rows
from runtime.readers.records import Prepared, Record, RecordOptions, Rejection
from runtime.variants import masking
from runtime.variants.conventions import Convention, pseudo_perplexity
from runtime.variants.notation import NotationError, Variant, WildType, parse
from runtime.variants.sources import WildTypes, prepare_residues
from runtime.windows import Values


@dataclass(frozen=True)
class Scoring:
    """Scores of variants: records of a wild type's id, with the variant as their sequence.

    Attributes:
        wild_types: by id.
        convention: see ``runtime.variants.conventions``.
        offset: number of a protein's first residue.
    """

    wild_types: WildTypes
    convention: Convention
    offset: int

    def read(self, record: Record) -> tuple[WildType, Variant]:
        """Raises NotationError for what is no variant of a wild type."""
        wild_type = self.wild_types.get(record.id)
        if wild_type is None:
            raise NotationError("its id is none of the wild types'")
        return wild_type, parse(record.sequence, wild_type, self.offset)

    def prepare(self, record: Record) -> Prepared | Rejection:  # noqa: D102
        try:
            wild_type, variant = self.read(record)
        except NotationError as error:
            name = f"{record.id} {record.sequence}"
            return Rejection(name, record.file, record.line, None, str(error), "Mend the row")
        return Prepared(wild_type.tokens, windows=self.convention.runs(wild_type, variant))

    def of_pack(self, engine: Engine, batch: PackedBatch) -> list[Values]:  # noqa: D102
        return masking.of_pack(engine, batch)

    def result(self, record: Record, values: list[Values]) -> Values:  # noqa: D102
        return np.asarray(self.convention.score(*self.read(record), values))


@dataclass(frozen=True)
class Perplexity:
    """Pseudo-perplexities of proteins.

    Attributes:
        options: what is taken beyond ESM-2's alphabet.
    """

    options: RecordOptions

    def prepare(self, record: Record) -> Prepared | Rejection:  # noqa: D102
        prepared = prepare_residues(record, self.options)
        if isinstance(prepared, Rejection):
            return prepared
        places = range(len(prepared.tokens) - 2)
        return Prepared(
            prepared.tokens, prepared.was_lower, prepared.had_stop, prepared.had_unknown,
            windows=masking.masked_copies(prepared.tokens, places),
        )  # fmt: skip

    def of_pack(self, engine: Engine, batch: PackedBatch) -> list[Values]:  # noqa: D102
        return masking.of_pack(engine, batch)

    def result(self, record: Record, values: list[Values]) -> Values:  # noqa: D102
        prepared = cast(Prepared, prepare_residues(record, self.options))
        return np.asarray(pseudo_perplexity(prepared.tokens, values))


def log_probabilities(
    engine: Engine, batch: PackedBatch, columns: NDArray[np.int64] = AMINO_ACID_IDS
) -> list[Values]:
    """Of each protein's residues, float32.

    The softmax is over all 33 tokens: 20 columns do not sum to 1.

    Args:
        engine: that runs the pack.
        batch: to run.
        columns: of the 33.

    Returns:
        ``[L, columns]`` each.
    """
    rows = log_softmax(logits_of(engine, batch))[:, columns].astype(np.float32)
    bounds = batch.cu_seqlens.tolist()
    return [
        rows[residue_rows(start, end)].copy()
        for start, end in zip(bounds[:-1], bounds[1:], strict=True)
    ]
