"""What flows through ``esm2-run embed``: records in, embeddings out, what was odd on the way."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np

from runtime.errors import InputError, NonFiniteError
from runtime.readers.inputs import Inputs
from runtime.readers.nucleotides import watch_for_nucleotides
from runtime.readers.records import Record, Rejection
from runtime.readers.scan import all_rejected
from runtime.runner import AsyncInferenceRunner, Embedding, Totals

Say = Callable[[str], None]


class Rejections(Protocol):
    """Where rejections go."""

    first: Rejection | None


def strictly(skip: bool, reject: Callable[[Rejection], None]) -> Callable[[Rejection], None]:
    """Gives on what may be left out, and raises InputError for the rest.

    Args:
        skip: leave out what cannot be run.
        reject: gets each record that is left out.
    """

    def reject_or_raise(rejection: Rejection) -> None:
        if not (skip or rejection.asked):
            raise InputError(str(rejection))
        reject(rejection)

    return reject_or_raise


class Stream:
    """Records of files to embeddings, watched for what is odd.

    Args:
        inputs: to read.
        runner: that embeds.
        store: the dtype of what comes out; None leaves it.
        warn: receives what is odd.
    """

    def __init__(self, inputs: Inputs, runner: AsyncInferenceRunner, store: str | None, warn: Say):
        self._inputs = inputs
        self._runner = runner
        self._store = store
        self._warn = warn
        self._repeated: list[str] = []

    def embeddings(self, first_row: int) -> Iterator[Embedding]:
        """From a row of the input on."""
        records = self._watched_ids(self._inputs.records(first_row))
        watched = watch_for_nucleotides(records, self._warn)
        return stored(self._runner.run(watched, first_row), self._store)

    def report_oddities(self, budget: int, empty: str = "their mean embedding is NaN") -> None:
        """Says what was seen, a line for each kind.

        Args:
            budget: of a pack.
            empty: what becomes of records without residues.
        """
        totals = self._runner.totals
        for names, what, consequence in (
            (self._repeated, "repeated ids", "every record is kept, in input order"),
            (totals.without_residues, "records without residues", empty),
            (totals.over_budget, f"proteins longer than {budget} tokens", "each ran alone"),
        ):
            if names:
                examples = ", ".join(dict.fromkeys(names[:3])) + (", ..." if len(names) > 3 else "")
                self._warn(f"{what}: {len(names)} ({examples}); {consequence}")

    def _watched_ids(self, records: Iterable[Record]) -> Iterator[Record]:
        # 8 bytes of each, not the ids.
        seen: set[int] = set()
        for record in records:
            digest = hash(record.id)
            if digest in seen:
                self._repeated.append(record.id)
            seen.add(digest)
            yield record


def stored(embeddings: Iterator[Embedding], dtype: str | None) -> Iterator[Embedding]:
    """Rounded to ``dtype``; raises NonFiniteError where a number is too large for it."""
    if dtype is None:
        yield from embeddings
        return
    for embedding in embeddings:
        with np.errstate(over="ignore"):
            rounded = embedding.values.astype(dtype)
        if np.isinf(rounded).any():
            raise NonFiniteError(
                f"protein {embedding.id!r} has numbers up to {np.abs(embedding.values).max():.3g}, "
                f"too large for {dtype}. Leave --store out"
            )
        yield replace(embedding, values=rounded)


def unless_empty(
    embeddings: Iterable[Embedding], totals: Totals, rejected: Rejections, before: int = 0
) -> Iterator[Embedding]:
    """Raises at the end where there was none: then nothing is written.

    Args:
        embeddings: of a runner.
        totals: of that runner.
        rejected: where its rejections went.
        before: embeddings of earlier runs.
    """
    yield from embeddings
    if totals.proteins + before == 0:
        if rejected.first:
            raise all_rejected(totals.rejected, rejected.first)
        raise InputError("the input holds no proteins")
