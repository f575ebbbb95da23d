"""Tells DNA and RNA from proteins: their letters are residues too, so nothing else stops them."""

from collections.abc import Callable, Iterable, Iterator

from runtime.readers.records import Record

_NUCLEOTIDES = frozenset("ACGTUN")
_ENOUGH_RECORDS = 100
# A third of the residues of proteins are A, C, G, T or N: 60 of them by chance, one in 10^28.
_ENOUGH_RESIDUES = 60


def watch_for_nucleotides(
    records: Iterable[Record], warn: Callable[[str], None]
) -> Iterator[Record]:
    """Yields ``records``; calls ``warn`` once if the first of them are nucleotides alone."""
    undecided = True
    number = residues = 0
    for number, record in enumerate(records, start=1):
        if undecided:
            undecided = _NUCLEOTIDES.issuperset(record.sequence.upper())
            residues += len(record.sequence)
            if undecided and number >= _ENOUGH_RECORDS and residues >= _ENOUGH_RESIDUES:
                warn(_warning(number))
                undecided = False
        yield record
    if undecided and residues >= _ENOUGH_RESIDUES:
        warn(_warning(number))


def _warning(number: int) -> str:
    return (
        f"the first {number} records hold A, C, G, T, U and N alone, so they seem to be "
        "nucleotides. ESM-2 reads proteins: translate them first"
    )
