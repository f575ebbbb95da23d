"""What ``Model.score`` and ``Model.perplexity`` do."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.concurrency import Stream
from runtime.engine import Engine
from runtime.errors import InputError
from runtime.lm_head import AMINO_ACID_IDS, check_lm_head
from runtime.manifest_schema import Manifest
from runtime.readers.records import Record, RecordOptions, Rejection
from runtime.runner import AsyncInferenceRunner
from runtime.tokenizer import decode
from runtime.variants.conventions import convention_of
from runtime.variants.notation import WildType
from runtime.variants.sources import all_substitutions, prepare_residues
from runtime.variants.survey import look_at, of_deep_scan, scan_of, to_run
from runtime.variants.tasks import Perplexity, Scoring
from runtime.windows import Task

EngineFor = Callable[[Stream], tuple[Engine, int]]
_ID = "wild type"


def scores(
    manifest: Manifest, engine_for: EngineFor, wild_type: str, variants: Iterable[str] | None,
    convention: str, offset: int,
) -> NDArray[np.float64]:  # fmt: skip
    """See ``Model.score``.

    Args:
        manifest: of the artifact.
        engine_for: gives the engine for so much work, and the budget of a pack.
        wild_type, variants, convention, offset: as there.
    """
    check_lm_head(manifest)
    protein = wild_type_of(wild_type)
    task = Scoring({_ID: protein}, convention_of(convention), offset)
    if variants is None:
        records = deep_scan(protein, offset)
        found = of_deep_scan(task)
    else:
        if isinstance(variants, str):
            raise InputError("variants must be a list of them, got one string. Put it in a list")
        records = [Record(_ID, variant) for variant in variants]
        found = look_at(task, records)
    if found.rejected:
        raise InputError(
            f"{found.rejected:,} of {len(records):,} variants cannot be scored: "
            + "; ".join(found.listed)
        )
    values = _run(engine_for, Stream.of(to_run(task, found)), task, records)
    return values if variants is not None else by_residue(protein, values)


def perplexities(
    manifest: Manifest, engine_for: EngineFor, records: Sequence[Record], options: RecordOptions
) -> NDArray[np.float64]:
    """See ``Model.perplexity``; arguments as in ``scores``."""
    check_lm_head(manifest)
    lengths = [len(record.sequence) for record in records]
    copies = scan_of(sum(lengths), sum(n * (n + 2) for n in lengths), max(lengths, default=0) + 2)
    return _run(engine_for, Stream.of(copies), Perplexity(options), records)


def _run(
    engine_for: EngineFor, stream: Stream, task: Task, records: Iterable[Record]
) -> NDArray[np.float64]:
    engine, max_tokens = engine_for(stream)
    runner = AsyncInferenceRunner(engine, max_tokens, task=task)
    return np.array([float(found.values) for found in runner.run(records)])


def wild_type_of(sequence: str) -> WildType:
    """Raises InputError for what is no protein of residues alone."""
    prepared = prepare_residues(Record(_ID, sequence), RecordOptions())
    if isinstance(prepared, Rejection):
        raise InputError(f"{_ID}: {prepared.reason}. {prepared.advice}")
    return WildType(_ID, prepared.tokens, decode(prepared.tokens))


def deep_scan(protein: WildType, offset: int) -> list[Record]:
    """All single substitutions, and as the last what changes nothing."""
    first = protein.residues[0]
    unchanged = Record(_ID, f"{first}{offset}{first}")
    return [*all_substitutions({_ID: protein}, offset), unchanged]


def by_residue(protein: WildType, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[L, 20]`` of the scores of a ``deep_scan``."""
    *changed, unchanged = values
    table = np.full((len(protein.residues), len(AMINO_ACID_IDS)), unchanged)
    table[protein.tokens[1:-1, None] != AMINO_ACID_IDS] = changed
    return table
