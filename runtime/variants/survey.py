"""A look at all variants before anything runs: which cannot be scored, and what is to be run."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from runtime.lm_head import AMINO_ACIDS
from runtime.readers.records import Record, printable
from runtime.readers.scan import Scan
from runtime.variants.notation import NotationError
from runtime.variants.tasks import Scoring

# Rows that are listed one by one.
MOST_LISTED = 1000


@dataclass
class Found:
    """What a table holds.

    Attributes:
        variants: of each wild type.
        places: of each wild type, those that occur.
        tokens: of the wild types, for each variant.
        rejected: rows that cannot be scored.
        listed: the first of them, a line each.
    """

    variants: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    places: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    tokens: int = 0
    rejected: int = 0
    listed: list[str] = field(default_factory=list)


def look_at(task: Scoring, records: Iterable[Record]) -> Found:
    """Reads all of them."""
    found = Found()
    for row, record in enumerate(records, start=1):
        try:
            wild_type, variant = task.read(record)
        except NotationError as error:
            found.rejected += 1
            if len(found.listed) < MOST_LISTED:
                where = f"line {record.line}" if record.line else f"row {row}"
                name = printable(f"{record.id} {record.sequence}")
                place = f"{record.file}, {where}: " if record.file else ""
                found.listed.append(f"{place}{name}: {error}")
            continue
        found.variants[wild_type.id] += 1
        found.places[wild_type.id].update(each.place for each in variant)
        found.tokens += len(wild_type.tokens)
    return found


def of_deep_scan(task: Scoring) -> Found:
    """What ``all_substitutions`` gives."""
    found = Found()
    for each in task.wild_types.values():
        count = sum(len(AMINO_ACIDS) - (letter in AMINO_ACIDS) for letter in each.residues)
        found.variants[each.id] = count
        found.places[each.id] = set(range(len(each.residues)))
        found.tokens += count * len(each.tokens)
    return found


def to_run(task: Scoring, found: Found) -> Scan:
    """What the engine will be given."""
    num_runs = num_tokens = longest = 0
    for id_, variants in found.variants.items():
        wild_type = task.wild_types[id_]
        runs = task.convention.num_runs(wild_type, variants, len(found.places[id_]))
        num_runs += runs
        num_tokens += runs * len(wild_type.tokens)
        longest = max(longest, len(wild_type.tokens))
    return scan_of(num_runs, num_tokens, longest)


def scan_of(num_proteins: int, num_tokens: int, longest: int) -> Scan:
    """Of sequences that no file holds."""
    return Scan(num_proteins, num_tokens, longest, 0, None, is_whole=True, tokens_to_run=num_tokens)
