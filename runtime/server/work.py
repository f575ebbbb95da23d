"""What a request comes to: token sequences to run, what is taken of them, what they come to."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.engine import Engine
from runtime.lm_head import AMINO_ACID_IDS, check_lm_head
from runtime.manifest_schema import Manifest
from runtime.packing import PackedBatch
from runtime.pairs import CONTACTS, check_contacts, contacts_of
from runtime.pooling import Pool
from runtime.predict.scores import head_of, scores_of_pack
from runtime.readers.records import Record, RecordOptions, Rejection, prepare
from runtime.runner import check_layer, vectors_of_pack
from runtime.server.problems import TooLarge, Untokenizable
from runtime.server.settings import Limits
from runtime.tokenizer import TOKENS
from runtime.variants import masking
from runtime.variants.tasks import log_probabilities

Values = NDArray[np.floating]
Tokens = NDArray[np.int64]
OfPack = Callable[[Engine, PackedBatch], list[Values]]

LONGEST_TOKEN = max(map(len, TOKENS))
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
        return contacts_of(engine.run(batch, [CONTACTS]), batch)

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
    if truncate:
        options = replace(options, max_length=limits.max_length, long="truncate")
    else:
        check_characters(sequences, limits)
    found, wrong = [], []
    for i, sequence in enumerate(sequences):
        prepared = prepare(Record("", sequence), options)
        if isinstance(prepared, Rejection):
            wrong.append(detail_of(i, sequence, prepared))
        elif len(prepared.tokens) == 2:
            wrong.append({"record": i, "reason": "it holds no residues"})
        else:
            found.append(prepared.tokens)
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


def check_tokens(number: int, limits: Limits) -> None:
    """Raises TooLarge for more tokens than may wait."""
    if number > limits.max_queue_tokens:
        raise TooLarge(
            f"{number:,} tokens in one request, at most {limits.max_queue_tokens:,} are taken "
            "(--max-queue-tokens): split it"
        )


def check_characters(sequences: Sequence[str], limits: Limits) -> None:
    """Raises TooLarge before what cannot be short enough is tokenized."""
    most = LONGEST_TOKEN * limits.max_length
    for i, sequence in enumerate(sequences):
        if len(sequence) > most:
            raise TooLarge(
                f"sequence number {i} has {len(sequence):,} characters, and proteins of at most "
                f"{limits.max_length:,} residues are taken (--max-length)"
            )


def detail_of(number: int, sequence: str, rejection: Rejection) -> dict[str, Any]:
    """What is wrong with a record, for programs."""
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
