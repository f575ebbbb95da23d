"""What a request comes to: token sequences to run, what is taken of them, what they come to."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.engine import Engine
from runtime.lm_head import AMINO_ACID_IDS, check_lm_head
from runtime.manifest import Manifest
from runtime.packing import PackedBatch
from runtime.pairs import check_contacts, contacts_of
from runtime.pooling import Pool
from runtime.predict.scores import head_of, scores_of_pack
from runtime.readers.records import Record, RecordOptions, Rejection, prepare
from runtime.runner import check_layer, vectors_of_pack
from runtime.server.problems import TooLarge, Untokenizable
from runtime.server.settings import Limits
from runtime.tokenizer import TOKENS, decode
from runtime.variants import masking
from runtime.variants.conventions import convention_of
from runtime.variants.notation import WildType
from runtime.variants.sources import all_substitutions, prepare_residues
from runtime.variants.tasks import Perplexity, Scoring, log_probabilities
from runtime.windows import Task

Values = NDArray[np.floating]
Tokens = NDArray[np.int64]
OfPack = Callable[[Engine, PackedBatch], list[Values]]

# Records that are listed one by one where a request is refused.
MOST_LISTED = 20
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Kind:
    """What is taken of proteins; those of equal kinds share packs.

    Attributes:
        name: with its arguments.
        of_pack: runs a pack, and gives each protein's values.
        numbers: how many they are, of a protein of so many tokens.
    """

    name: str
    of_pack: OfPack = field(compare=False)
    numbers: Callable[[int], int] = field(compare=False)


@dataclass(frozen=True)
class Work:
    """What is to be run for a request.

    Attributes:
        kind: what is taken.
        tokens: ``[L + 2]`` of each sequence.
        client: who asks.
        num_tokens: of all sequences.
        num_bytes: of all values.
    """

    kind: Kind
    tokens: Sequence[Tokens]
    client: str
    num_tokens: int = field(init=False)
    num_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        numbers = sum(self.kind.numbers(len(each)) for each in self.tokens)
        object.__setattr__(self, "num_tokens", sum(map(len, self.tokens)))
        object.__setattr__(self, "num_bytes", FLOAT_BYTES * numbers)


# --- kinds --------------------------------------------------------------------------------------


def vectors(manifest: Manifest, layer: int | None, pool: Pool) -> Kind:
    """``[E]`` of each protein, or ``[L, E]``. Raises InputError for a layer that there is not."""
    number = max(manifest.layers) if layer is None else layer
    check_layer(number, manifest.layers)
    width = manifest.architecture.embed_dim

    def numbers(tokens: int) -> int:
        return width * tokens if pool == "none" else width

    return Kind(
        f"vectors {number} {pool}", partial(vectors_of_pack, layer=number, how=pool), numbers
    )


def logits(manifest: Manifest, columns: int) -> Kind:
    """Log-probabilities ``[L, 20]`` or ``[L, 33]``. Raises UnsupportedError without an LM head."""
    check_lm_head(manifest)
    chosen = AMINO_ACID_IDS if columns == len(AMINO_ACID_IDS) else np.arange(len(TOKENS))
    return Kind(
        f"logits {columns}", partial(log_probabilities, columns=chosen), lambda t: columns * t
    )


def contacts(manifest: Manifest) -> Kind:
    """Pairs of each protein, see ``runtime.pairs``. Raises UnsupportedError without contacts."""
    check_contacts(manifest)

    def of_pack(engine: Engine, batch: PackedBatch) -> list[Values]:
        return contacts_of(engine.run(batch), batch)

    return Kind("contacts", of_pack, lambda tokens: tokens * tokens)


def predictions(manifest: Manifest) -> Kind:
    """A head's scores. Raises UnsupportedError without a head."""
    head = head_of(manifest)
    width = 2 * len(head.labels)  # float64

    def of_pack(engine: Engine, batch: PackedBatch) -> list[Values]:
        return scores_of_pack(engine, head)(batch)

    return Kind("predictions", of_pack, lambda t: width * t if head.rows == "tokens" else width)


def masked(manifest: Manifest) -> Kind:
    """Log-probabilities where copies of proteins are masked."""
    check_lm_head(manifest)
    return Kind("masked", masking.of_pack, lambda tokens: 2 * len(TOKENS))


# --- proteins -----------------------------------------------------------------------------------


def proteins(
    kind: Kind, sequences: Sequence[str], options: RecordOptions, limits: Limits, client: str,
    truncate: bool = False,
) -> Work:  # fmt: skip
    """Each sequence is run as it is.

    Args:
        kind: what is taken.
        sequences: of the request.
        options: what is taken beyond ESM-2's alphabet.
        limits: of the server.
        client: who asks.
        truncate: cut proteins that are too long.

    Raises:
        Untokenizable: sequences that are no proteins, all of them.
        TooLarge: too many of them, or too long ones.
    """
    check_number(len(sequences), limits, "sequences")
    found, wrong = [], []
    for i, sequence in enumerate(sequences):
        prepared = prepare(Record("", sequence), options)
        if isinstance(prepared, Rejection):
            wrong.append(_detail(i, sequence, prepared))
        elif len(prepared.tokens) == 2:
            wrong.append({"record": i, "reason": "it holds no residues"})
        else:
            found.append(
                _within(prepared.tokens, limits.max_length) if truncate else prepared.tokens
            )
    if wrong:
        raise Untokenizable(_listing(wrong, len(sequences)), details=wrong[:MOST_LISTED])
    check_lengths(found, limits)
    return Work(kind, found, client)


def check_number(number: int, limits: Limits, what: str) -> None:
    """Raises TooLarge for too many of them in one request."""
    if number > limits.max_client_batch_size:
        raise TooLarge(
            f"{number:,} {what} in one request, at most {limits.max_client_batch_size:,} are taken "
            "(--max-client-batch-size): split it"
        )


def check_lengths(tokens: Iterable[Tokens], limits: Limits) -> None:
    """Raises TooLarge for proteins that are too long, all of them."""
    lengths = [len(each) - 2 for each in tokens]
    long = [
        {"record": i, "reason": f"{length:,} residues"}
        for i, length in enumerate(lengths)
        if length > limits.max_length
    ]
    if long:
        raise TooLarge(
            f"{len(long):,} of {len(lengths):,} proteins have more than {limits.max_length:,} "
            f"residues (--max-length), such as number {long[0]['record']} with "
            f"{long[0]['reason']}: leave them out, or give \"truncate\": true",
            details=long[:MOST_LISTED],
        )  # fmt: skip


def _within(tokens: Tokens, residues: int) -> Tokens:
    """BOS, the first residues, EOS; as fair-esm cuts (esm/data.py:268)."""
    if len(tokens) - 2 <= residues:
        return tokens
    return np.concatenate([tokens[: residues + 1], tokens[-1:]])


def _detail(number: int, sequence: str, rejection: Rejection) -> dict[str, Any]:
    detail: dict[str, Any] = {"record": number, "reason": rejection.reason}
    if rejection.position is not None:
        detail["position"] = rejection.position
        detail["character"] = sequence.strip()[rejection.position - 1 :][:1]
    return detail


def _listing(wrong: list[dict[str, Any]], of: int) -> str:
    first = wrong[0]
    return (
        f"{len(wrong):,} of {of:,} sequences cannot be tokenized, such as number "
        f"{first['record']}: {first['reason']}. Mend them; \"unknown\", \"upper\" and "
        '"strip_stop" say what else is taken'
    )  # fmt: skip


# --- variants -----------------------------------------------------------------------------------


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
    prepared = prepare_residues(Record("", wild_type), RecordOptions())
    if isinstance(prepared, Rejection):
        detail = _detail(0, wild_type, prepared)
        raise Untokenizable(f"the wild type: {prepared.reason}", details=[detail])
    check_lengths([prepared.tokens], limits)
    protein = WildType("", prepared.tokens, decode(prepared.tokens))
    task = Scoring({"": protein}, convention_of(convention), offset)
    if wanted is None:
        records = list(all_substitutions(task.wild_types, offset))
    else:
        records = [Record("", variant) for variant in wanted]
    check_number(len(records), limits, "variants")
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
    task = Perplexity(options)
    scored = _shared(kind, task, [Record("", sequence) for sequence in sequences], client)
    check_lengths(scored.work.tokens, limits)
    return scored


def _shared(kind: Kind, task: Task, records: list[Record], client: str) -> Scored:
    place_of: dict[bytes, int] = {}
    tokens: list[Tokens] = []
    places, wrong = [], []
    for i, record in enumerate(records):
        prepared = task.prepare(record)
        if isinstance(prepared, Rejection):
            wrong.append(_detail(i, record.sequence, prepared))
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
