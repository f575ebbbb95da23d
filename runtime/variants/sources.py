"""Wild types and variants out of files, and the variants of a deep scan."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from runtime.errors import InputError
from runtime.lm_head import AMINO_ACIDS
from runtime.readers.inputs import Inputs
from runtime.readers.records import Prepared, Record, RecordOptions, Rejection, prepare, printable
from runtime.tokenizer import decode
from runtime.variants.notation import WildType

WildTypes = Mapping[str, WildType]


def prepare_residues(record: Record, options: RecordOptions) -> Prepared | Rejection:
    """As ``prepare``, for what is masked residue by residue: inline tokens cannot be."""
    prepared = prepare(record, options)
    if isinstance(prepared, Rejection):
        return prepared
    text = decode(prepared.tokens)
    what, advice = None, ""
    if not text:
        what, advice = "holds no residues", "Remove it"
    elif "<" in text:
        what, advice = "holds inline tokens such as <mask>", "Give residues alone"
    if what is None:
        return prepared
    return Rejection(record.id, record.file, record.line, None, what, advice)


def read_wild_types(path: str, options: RecordOptions) -> dict[str, WildType]:
    """All proteins of a FASTA file, by their ids.

    Raises:
        InputError: two of one id, or one that is no protein of residues alone.
    """
    found: dict[str, WildType] = {}
    for record in Inputs([path], None).records(0):
        prepared = prepare_residues(record, options)
        if isinstance(prepared, Rejection):
            raise InputError(f"wild type {printable(str(prepared))}")
        if record.id in found:
            raise InputError(
                f"{printable(path)} holds two wild types {printable(record.id)!r}. Rename one"
            )
        found[record.id] = WildType(record.id, prepared.tokens, decode(prepared.tokens))
    return found


def variants_of(inputs: Inputs, first_row: int, only: str | None) -> Iterator[Record]:
    """A record for each row of a table: the wild type's id, and the variant as its sequence.

    Args:
        inputs: the table.
        first_row: to begin with.
        only: id of the one wild type, where the table names none.
    """
    for record in inputs.records(first_row):
        yield record if only is None else replace(record, id=only)


def all_substitutions(wild_types: WildTypes, offset: int) -> Iterator[Record]:
    """Each residue of each protein as each of the other amino acids, in order."""
    for each in wild_types.values():
        for number, wild in enumerate(each.residues, start=offset):
            for mutant in AMINO_ACIDS.replace(wild, ""):
                yield Record(each.id, f"{wild}{number}{mutant}")
