"""``A12G:S45T`` against its wild type: which residues become which, or what is wrong with it."""

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.readers.records import printable
from runtime.tokenizer import ID_OF_TOKEN

SEPARATOR = ":"
# The letters of the alphabet that are residues: no gap, and no end of a chain.
LETTERS = frozenset("ACDEFGHIKLMNPQRSTVWYXBUZO")
_SUBSTITUTION = re.compile(r"([A-Z])(-?\d+)([A-Z])")
_INDEL = re.compile(r"del|ins|dup|fs|ext|Ter|[*=.-]$|^-|_")
_SHOWN = 40


class Substitution(NamedTuple):
    """One residue that becomes another.

    Attributes:
        place: of the residue in its protein, from 0.
        wild, mutant: token ids.
    """

    place: int
    wild: int
    mutant: int


@dataclass(frozen=True)
class WildType:
    """A protein that variants are of.

    Attributes:
        id: of its record.
        tokens: ``[L + 2]`` int64, BOS and EOS included; residues alone between them.
        residues: the same as letters.
    """

    id: str
    tokens: NDArray[np.int64]
    residues: str


Variant = tuple[Substitution, ...]


class NotationError(Exception):
    """What is wrong with a variant, in a phrase."""


def parse(text: str, wild_type: WildType, offset: int) -> Variant:
    """Reads substitutions, in the order in which they are written.

    Args:
        text: such as ``A12G``, or several with colons.
        wild_type: that it is of.
        offset: number of the protein's first residue: 1, unless a table counts otherwise. It is
            ``--offset-idx`` of fair-esm's script (``label_row``), whose default is 0.

    Raises:
        NotationError: another notation, an insertion or deletion, a position out of range or
            twice, a letter that is not the wild type's.
    """
    found = tuple(_substitution(each, wild_type, offset) for each in text.strip().split(SEPARATOR))
    if len({each.place for each in found}) < len(found):
        raise NotationError("a position occurs twice")
    return found


def mutated(wild_type: WildType, variant: Variant) -> NDArray[np.int64]:
    """Tokens of the variant's own sequence: ``[L + 2]``."""
    tokens = wild_type.tokens.copy()
    for place, _, mutant in variant:
        tokens[place + 1] = mutant
    return tokens


def _substitution(text: str, wild_type: WildType, offset: int) -> Substitution:
    match = _SUBSTITUTION.fullmatch(text)
    if match is None:
        raise NotationError(_no_substitution(text))
    wild, number, mutant = match[1], int(match[2]), match[3]
    for letter in (wild, mutant):
        if letter not in LETTERS:
            raise NotationError(f"{letter!r} in {text!r} is no residue of ESM-2's alphabet")
    length = len(wild_type.residues)
    place = number - offset
    if not 0 <= place < length:
        raise NotationError(
            f"position {number} is out of range: {_name(wild_type)} runs from {offset} to "
            f"{offset + length - 1}"
        )
    if (there := wild_type.residues[place]) != wild:
        raise NotationError(
            f"{text!r} expects {wild} at position {number}, and {_name(wild_type)} has {there} "
            "there (--offset-idx says the number of its first residue)"
        )
    return Substitution(place, ID_OF_TOKEN[wild], ID_OF_TOKEN[mutant])


def _no_substitution(text: str) -> str:
    shown = printable(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
    if not text:
        return "there is no substitution in it"
    if _INDEL.search(text):
        return (
            f"'{shown}' is no substitution: insertions, deletions and stops are not scored, for "
            "these scores compare residues at one position"
        )
    return f"'{shown}' is no substitution such as A12G, or several with colons (A12G:S45T)"


def _name(wild_type: WildType) -> str:
    return f"wild type '{printable(wild_type.id)}'"
