"""What functions take as sequences: one, or many in any iterable."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from runtime.concurrency import Stream
from runtime.errors import InputError
from runtime.readers.records import Record

One = str | Record
Many = Mapping[str, str] | Iterable[str | tuple[str, str] | Record]


def records_of(sequences: Any) -> Iterator[Record]:
    """A record for each; raises InputError for what is none of ``One`` or ``Many``."""
    match sequences:
        case str() | Record():
            given: Iterable[Any] = [sequences]
        case Mapping():
            given = sequences.items()
        case bytes() | bytearray() | os.PathLike():
            raise _not_sequences(sequences)
        case (str(), str()) if isinstance(sequences, tuple):
            raise InputError(
                "two strings in a tuple are a pair (id, sequence) or two sequences. Put them in a "
                "list: [(id, sequence)], or [sequence, sequence]"
            )
        case Iterable():
            given = sequences
        case _:
            raise _not_sequences(sequences)
    return _each(given)


def _each(given: Iterable[Any]) -> Iterator[Record]:
    for number, one in enumerate(given):
        match one:
            case Record():
                yield one
            case str():
                yield Record(str(number), one)
            case (str(name), str(sequence)) if isinstance(one, tuple):
                yield Record(name, sequence)
            case _:
                raise InputError(
                    f"protein {number} must be a string, a pair (id, sequence) or a Record, got "
                    f"{type(one).__name__}"
                )


def _not_sequences(given: object) -> InputError:
    return InputError(
        "sequences must be a string, a Record, or an iterable of strings, pairs (id, sequence) or "
        f"Records, got {type(given).__name__}. Files are read by read_fasta"
    )


def stream_of(sequences: One | Many) -> Stream:
    """What is known of them before they are run: nothing of what can be read only once."""
    if not isinstance(sequences, One) and not hasattr(sequences, "__len__"):
        return Stream()
    # BOS and EOS; inline tokens such as <mask> make it too many, which does no harm.
    lengths = [len(record.sequence) + 2 for record in records_of(sequences)]
    return Stream(len(lengths), sum(lengths), max(lengths, default=0))
