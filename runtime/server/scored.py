"""What is run for scores of variants and for perplexities: sequences that several records share."""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.manifest_schema import Manifest
from runtime.readers.records import Prepared, Record, RecordOptions, Rejection
from runtime.server.problems import Untokenizable
from runtime.server.settings import Limits
from runtime.server.work import (
    MOST_LISTED,
    Kind,
    Tokens,
    Values,
    Work,
    check_characters,
    check_lengths,
    check_number,
    check_tokens,
    detail_of,
    masked,
)
from runtime.tokenizer import decode
from runtime.variants.conventions import convention_of
from runtime.variants.notation import WildType
from runtime.variants.sources import all_substitutions, prepare_residues
from runtime.variants.survey import look_at, of_deep_scan, to_run
from runtime.variants.tasks import Perplexity, Scoring
from runtime.windows import Task


@dataclass(frozen=True)
class Scored:
    """Records whose values come of shared sequences, such as variants of one protein.

    Attributes:
        work: the sequences, each once.
        task: what makes values of them.
        records: in the order of the request.
        places: of each record's sequences in ``work``.
    """

    work: Work
    task: Task
    records: list[Record]
    places: list[list[int]]

    def results(self, values: Sequence[Values]) -> list[float]:
        """Of each record."""
        return [
            float(self.task.result(record, [values[i] for i in places]))
            for record, places in zip(self.records, self.places, strict=True)
        ]


def variants(
    manifest: Manifest, wild_type: str, wanted: Sequence[str] | None, convention: str, offset: int,
    limits: Limits, client: str,
) -> Scored:  # fmt: skip
    """Scores of variants of one protein; arguments as of ``Model.score``.

    Raises:
        Untokenizable: variants that cannot be scored, all of them.
        TooLarge: too many of them, or too long a protein.
        InputError: no such convention.
    """
    kind = masked(manifest)
    check_characters([wild_type], limits)
    prepared = prepare_residues(Record("", wild_type), RecordOptions())
    if isinstance(prepared, Rejection):
        detail = detail_of(0, wild_type, prepared)
        raise Untokenizable(f"the wild type: {prepared.reason}", details=[detail])
    check_lengths([prepared.tokens], limits)
    protein = WildType("", prepared.tokens, decode(prepared.tokens))
    task = Scoring({"": protein}, convention_of(convention), offset)
    if wanted is None:
        records = list(all_substitutions(task.wild_types, offset))
    else:
        records = [Record("", variant) for variant in wanted]
    check_number(len(records), limits, "variants")
    # Before they are made: of each variant there may be as many copies as residues.
    found = of_deep_scan(task) if wanted is None else look_at(task, records)
    check_tokens(to_run(task, found).tokens_to_run, limits)
    return _shared(kind, task, records, client)


def perplexities(
    manifest: Manifest,
    sequences: Sequence[str],
    options: RecordOptions,
    limits: Limits,
    client: str,
) -> Scored:
    """Pseudo-perplexities; raises as ``proteins``."""
    kind = masked(manifest)
    check_number(len(sequences), limits, "sequences")
    check_characters(sequences, limits)
    records = [Record("", sequence) for sequence in sequences]
    prepared = [prepare_residues(record, options) for record in records]
    tokens = [each.tokens for each in prepared if isinstance(each, Prepared)]
    check_lengths(tokens, limits)
    # Before they are made: as many copies as residues.
    check_tokens(sum((len(each) - 2) * len(each) for each in tokens), limits)
    return _shared(kind, Perplexity(options), records, client)


def _shared(kind: Kind, task: Task, records: list[Record], client: str) -> Scored:
    place_of: dict[bytes, int] = {}
    tokens: list[Tokens] = []
    places, wrong = [], []
    for i, record in enumerate(records):
        prepared = task.prepare(record)
        if isinstance(prepared, Rejection):
            wrong.append(detail_of(i, record.sequence, prepared))
            continue
        places.append([_place(run, place_of, tokens) for run in prepared.runs])
    if wrong:
        first = wrong[0]
        raise Untokenizable(
            f"{len(wrong):,} of {len(records):,} records cannot be scored, such as number "
            f"{first['record']}: {first['reason']}",
            details=wrong[:MOST_LISTED],
        )
    if not records:
        raise Untokenizable("nothing to score")
    return Scored(Work(kind, tokens, client), task, records, places)


def _place(run: Tokens, place_of: dict[bytes, int], tokens: list[Tokens]) -> int:
    place = place_of.setdefault(run.tobytes(), len(tokens))
    if place == len(tokens):
        tokens.append(run)
    return place
