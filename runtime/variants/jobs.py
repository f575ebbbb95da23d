"""What each command runs: variants, proteins masked residue by residue, proteins as they are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from runtime import manifest as manifests
from runtime.embed_options import EmbedOptions
from runtime.embed_stream import Say, strictly
from runtime.engine import Engine
from runtime.errors import InputError
from runtime.lm_head import AMINO_ACID_IDS, AMINO_ACIDS, check_lm_head
from runtime.manifest_schema import Manifest
from runtime.readers.fasta import check_readable, is_regular
from runtime.readers.inputs import Inputs
from runtime.readers.nucleotides import watch_for_nucleotides
from runtime.readers.records import Record, printable
from runtime.readers.scan import Scan, scan
from runtime.readers.tables import Columns as TableColumns
from runtime.runner import AsyncInferenceRunner
from runtime.sliding import TRAINED_ON
from runtime.tokenizer import TOKENS
from runtime.variants.conventions import convention_of
from runtime.variants.run import Job, Reject
from runtime.variants.sources import WildTypes, all_substitutions, read_wild_types, variants_of
from runtime.variants.survey import Found, look_at, of_deep_scan, scan_of, to_run
from runtime.variants.tasks import Perplexity, Scoring, log_probabilities
from runtime.windows import Task
from runtime.writers.columns import Columns
from runtime.writers.writing import FORMATS, TABLES

LOGITS_COLUMNS = {"20": AMINO_ACID_IDS, "33": np.arange(len(TOKENS))}


@dataclass(frozen=True)
class Asked:
    """What ``esm2-run score`` was asked for, beside the engine.

    Attributes:
        wild_types: path of the FASTA file.
        variants: path of the table; None scores all single substitutions.
        convention: its name.
        offset: number of a protein's first residue.
        mutation_col, id_column: of the table.
    """

    wild_types: str
    variants: str | None
    convention: str
    offset: int
    mutation_col: str
    id_column: str | None


def scoring_job(options: EmbedOptions, asked: Asked, tell: Say) -> Job:
    """Reads wild types and variants; nothing is loaded.

    Args:
        options: of the engine, and what is taken of wild types.
        asked: what to score.
        tell: receives each row that cannot be scored.

    Raises:
        InputError: what cannot be read, or rows that cannot be scored and are not to be left out.
        UnsupportedError: the artifact has no LM head.
    """
    manifest = manifests.read(options.artifact, check_files=False)
    check_lm_head(manifest)
    _check_read_twice(options.inputs)
    wild_types = read_wild_types(asked.wild_types, options.records)
    task = Scoring(wild_types, convention_of(asked.convention), asked.offset)
    records: Callable[[int], Iterator[Record]]
    if asked.variants is None:
        found = of_deep_scan(task)
        records = partial(_deep, task)
    else:
        only = _only(wild_types, asked)
        table = Inputs([asked.variants], TableColumns(asked.mutation_col, asked.id_column))
        records = partial(variants_of, table, only=only)
        found = look_at(task, records(0))
        _report(found, options.skip, asked.variants, tell)
    total = sum(found.variants.values())
    sequences = to_run(task, found)
    tell(
        f"{total:,} variants of {len(found.variants):,} proteins: "
        f"{sequences.num_proteins:,} sequences "
        f"to run, {sequences.tokens_to_run:,} tokens"
    )
    said = {
        "convention": asked.convention, "offset_idx": asked.offset,
        "mutation_col": asked.mutation_col if asked.variants else None,
        "id_column": asked.id_column, "deep": asked.variants is None,
    }  # fmt: skip
    return Job(
        options, manifest, sequences, records, total + found.rejected, found.tokens, "variants",
        partial(_runner, options, task), Columns(("mutant",), ("score",)), TABLES, said,
    )  # fmt: skip


def perplexity_job(options: EmbedOptions, tell: Say) -> Job:
    """The pseudo-perplexity of each protein of FASTA files; raises as ``scoring_job``."""
    task = Perplexity(options.records)
    manifest, inputs, found = _proteins(options, tell)
    # As many copies as residues; of proteins about as long as each other.
    copies = found.num_tokens - 2 * found.num_proteins
    mean = found.num_tokens / max(1, found.num_proteins)
    copied = scan_of(copies, round(copies * mean), found.longest)
    return Job(
        options, manifest, copied, partial(_watched, inputs, tell), found.num_proteins,
        found.num_tokens, "proteins", partial(_runner, options, task),
        Columns(("length",), ("pseudo_perplexity",)), TABLES, {"masked": "one by one"},
    )  # fmt: skip


def logits_job(options: EmbedOptions, columns: str, tell: Say) -> Job:
    """Log-probabilities of each residue of FASTA files; raises as ``scoring_job``."""
    manifest, inputs, found = _proteins(options, tell)
    chosen = LOGITS_COLUMNS[columns]

    def runner(engine: Engine, budget: int, reject: Reject) -> AsyncInferenceRunner:
        return AsyncInferenceRunner(
            engine, budget, "none", None, options.records.unknown, options.records.upper,
            options.records.strip_stop, strictly(options.skip, reject),
            of_pack=lambda batch: log_probabilities(engine, batch, chosen),
        )  # fmt: skip

    said = {"columns": ",".join(AMINO_ACIDS if columns == "20" else TOKENS)}
    return Job(
        options, manifest, found, partial(_watched, inputs, tell), found.num_proteins,
        found.num_tokens, "proteins", runner, Columns((), ("log_probabilities",)), FORMATS, said,
    )  # fmt: skip


def _runner(
    options: EmbedOptions, task: Task, engine: Engine, budget: int, reject: Reject
) -> AsyncInferenceRunner:
    return AsyncInferenceRunner(
        engine, budget, on_rejected=strictly(options.skip, reject), task=task
    )


# --- proteins -----------------------------------------------------------------------------------


def _proteins(options: EmbedOptions, tell: Say) -> tuple[Manifest, Inputs, Scan]:
    manifest = manifests.read(options.artifact, check_files=False)
    check_lm_head(manifest)
    _check_read_twice(options.inputs)
    inputs = Inputs(options.inputs, None)
    found = scan(options.inputs, options.records)
    found.check(options.skip)
    if found.num_long:
        tell(
            f"{found.num_long:,} proteins are longer than {TRAINED_ON:,} residues, which ESM-2 was "
            "trained on: they are run whole"
        )
    return manifest, inputs, found


def _watched(inputs: Inputs, tell: Say, first_row: int) -> Iterator[Record]:
    return watch_for_nucleotides(inputs.records(first_row), tell)


def _check_read_twice(paths: tuple[str, ...]) -> None:
    check_readable(paths)
    for path in paths:
        if not is_regular(path):
            raise InputError(
                f"{printable(path)} can be read only once, and is looked at before the run. "
                "Give a file"
            )


# --- variants -----------------------------------------------------------------------------------


def _only(wild_types: WildTypes, asked: Asked) -> str | None:
    """Id of the one wild type, where the table names none."""
    if asked.id_column is not None:
        return None
    if len(wild_types) > 1:
        raise InputError(
            f"{printable(asked.wild_types)} holds {len(wild_types):,} wild types: --id-column says "
            "which column of the table names a variant's"
        )
    return next(iter(wild_types))


def _deep(task: Scoring, first_row: int) -> Iterator[Record]:
    for row, record in enumerate(all_substitutions(task.wild_types, task.offset)):
        if row >= first_row:
            yield record


def _report(found: Found, skip: bool, path: str, tell: Say) -> None:
    if not found.rejected:
        return
    good = sum(found.variants.values())
    if skip and good:
        return
    for line in found.listed:
        tell(line)
    if more := found.rejected - len(found.listed):
        tell(f"and {more:,} more")
    raise InputError(
        f"{found.rejected:,} of {good + found.rejected:,} variants of {printable(path)} cannot be "
        "scored, and nothing was run. Mend the rows above, or leave them out with --on-error skip"
    )
