"""Which proteins, or variants, go into one request."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.sequences import Many, One, records_of

# Tokens of a request, as times those that a server runs at once: with a few on their way its
# packs are full, and one that fails costs little.
ROUNDS = 2


@dataclass(frozen=True)
class Item:
    """A protein, or a variant.

    Attributes:
        value: as it is sent.
        name: for people.
        runs: tokens of each sequence that is run for it; those of equal keys are run once a
            request.
    """

    value: str
    name: str
    runs: Mapping[Hashable, int]

    @property
    def num_tokens(self) -> int:
        """Of all its runs."""
        return sum(self.runs.values())


def proteins_of(sequences: One | Many) -> list[Item]:
    """Of any kind that ``Model`` takes; each is run for itself."""
    return [
        # BOS and EOS; inline tokens such as <mask> make it too many, which does no harm.
        Item(record.sequence, record.id, {number: len(record.sequence) + 2})
        for number, record in enumerate(records_of(sequences))
    ]


@dataclass(frozen=True)
class Bounds:
    """Of one request.

    Attributes:
        items: of them.
        tokens: that are run.
        num_bytes: of the answer's numbers.
    """

    items: int
    tokens: int
    num_bytes: int

    @staticmethod
    def of(info: Mapping[str, Any], at_once: int) -> "Bounds":
        """What ``/info`` allows, where so many requests are on their way at once."""
        wanted = ROUNDS * info["max_batch_tokens"] * info["max_concurrent_packs"]
        return Bounds(
            info["max_client_batch_size"],
            min(wanted, info["max_queue_tokens"] // at_once),
            info["max_answer_bytes"] // at_once,
        )


def parts_of(
    items: Iterable[Item], bounds: Bounds, num_bytes: Callable[[int], int]
) -> Iterator[list[Item]]:
    """Items in their order, as many together as the bounds allow, and at least one.

    Args:
        items: to be sent.
        bounds: of each part.
        num_bytes: of an item's answer, by its tokens.
    """
    part: list[Item] = []
    run: set[Hashable] = set()
    tokens = held = 0
    for item in items:
        own = num_bytes(item.num_tokens)
        new = sum(tokens for key, tokens in item.runs.items() if key not in run)
        if part and (
            len(part) == bounds.items
            or tokens + new > bounds.tokens
            or held + own > bounds.num_bytes
        ):
            yield part
            part, run, tokens, held = [], set(), 0, 0
            new = item.num_tokens
        part.append(item)
        run.update(item.runs)
        tokens += new
        held += own
    if part:
        yield part
