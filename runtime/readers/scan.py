"""Reads whole files before a model is loaded: a bad record at their end is found in seconds."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice

from runtime.errors import InputError
from runtime.readers.fasta import Pieces, is_regular, read_pieces
from runtime.readers.records import Prepared, Record, RecordOptions, Rejection, prepare
from runtime.readers.tables import ROWS_AT_ONCE, Columns, read_tables
from runtime.sliding import TRAINED_ON
from runtime.tokenizer import RESIDUES

_SEQUENCE_BYTES = f"{RESIDUES}\n".encode()
# Of a header that needs no look: ASCII without control characters, blanks and tabs aside.
_HEADER_BYTES = bytes(range(0x20, 0x7F)) + b"\t\n"


@dataclass(frozen=True)
class Scan:
    """What files hold.

    Attributes:
        num_proteins: that can be run.
        num_tokens: of all of them, BOS and EOS included.
        longest: tokens of the longest that is run; 0 where there is none.
        num_rejected: records that cannot be run, or are not to be.
        first_rejected: the first of those.
        num_errors: of those, the ones that nobody asked to leave out.
        first_error: the first of those.
        num_cut: proteins that are longer than they may be, and are cut.
        num_in_windows: those that are run in windows.
        tokens_to_run: of what is run, which windows are in their place.
        num_long: proteins of more residues than ESM-2 was trained on.
        is_whole: every path was read. A pipe can be read only once, when its proteins are run.
    """

    num_proteins: int
    num_tokens: int
    longest: int
    num_rejected: int
    first_rejected: Rejection | None
    is_whole: bool
    num_errors: int = 0
    first_error: Rejection | None = None
    num_cut: int = 0
    num_in_windows: int = 0
    tokens_to_run: int = 0
    num_long: int = 0

    def check(self, skip: bool) -> None:
        """Raises InputError if a record cannot be run, with ``skip`` only if none can."""
        if self.first_error and not skip:
            more = self.num_errors - 1
            raise InputError(
                str(self.first_error) + (f". {more:,} more cannot be run" if more else "")
            )
        if self.first_rejected and self.is_whole and not self.num_proteins:
            raise all_rejected(self.num_rejected, self.first_rejected)


def all_rejected(count: int, first: Rejection) -> InputError:
    """What to raise where no record is left to run."""
    return InputError(f"none of {count:,} records can be run, so nothing is written. {first}")


def scan(paths: Iterable[str], options: RecordOptions, columns: Columns | None = None) -> Scan:
    """Reads every regular file of ``paths`` once, as ``read_fasta`` and ``prepare`` will.

    Args:
        paths: of FASTA files, or of tables.
        options: what is taken.
        columns: of tables; None for FASTA.

    Raises:
        InputError: as ``read_fasta`` or ``read_tables``.
    """
    paths = list(paths)
    so_far = Scan(0, 0, 0, 0, None, all(is_regular(path) for path in paths))
    regular = [path for path in paths if is_regular(path)]
    if columns is not None:
        rows = read_tables(regular, columns)
        while some := list(islice(rows, ROWS_AT_ONCE)):
            so_far = _add_each(so_far, some, options)
        return so_far
    for pieces in read_pieces(regular):
        clean = _add_clean(so_far, pieces)
        if clean and (options.max_length is None or clean.longest - 2 <= options.max_length):
            so_far = clean
        else:
            so_far = _add_each(so_far, pieces.records(), options)
    return so_far


def _add_clean(so_far: Scan, pieces: Pieces) -> Scan | None:
    """Adds records that ``prepare`` would take as they are, all at once, or None: ask it."""
    pairs = [text.partition("\n") for text in pieces.texts]
    headers = "\n".join([header for header, _, _ in pairs])
    residues = "".join([body for _, _, body in pairs])
    if not _holds_only(headers, _HEADER_BYTES) or not _holds_only(residues, _SEQUENCE_BYTES):
        return None
    lengths = [len(body) - body.count("\n") for _, _, body in pairs]
    return replace(
        so_far,
        num_proteins=so_far.num_proteins + len(pairs),
        num_tokens=so_far.num_tokens + sum(lengths) + 2 * len(pairs),
        tokens_to_run=so_far.tokens_to_run + sum(lengths) + 2 * len(pairs),
        longest=max([so_far.longest, *(length + 2 for length in lengths)]),
        num_long=so_far.num_long + sum(length > TRAINED_ON for length in lengths),
    )


def _add_each(so_far: Scan, records: Iterable[Record], options: RecordOptions) -> Scan:
    results = [prepare(record, options) for record in records]
    prepared = [result for result in results if isinstance(result, Prepared)]
    lengths = [len(run) for result in prepared for run in result.runs]
    rejected = [result for result in results if isinstance(result, Rejection)]
    errors = [result for result in rejected if not result.asked]
    return replace(
        so_far,
        num_proteins=so_far.num_proteins + len(prepared),
        num_tokens=so_far.num_tokens + sum(len(result.tokens) for result in prepared),
        tokens_to_run=so_far.tokens_to_run + sum(lengths),
        longest=max([so_far.longest, *lengths]),
        num_rejected=so_far.num_rejected + len(rejected),
        first_rejected=so_far.first_rejected or (rejected[0] if rejected else None),
        num_errors=so_far.num_errors + len(errors),
        first_error=so_far.first_error or (errors[0] if errors else None),
        num_long=so_far.num_long
        + sum(len(result.tokens) - 2 > TRAINED_ON and not result.windows for result in prepared),
        num_cut=so_far.num_cut + sum(result.was_cut for result in prepared),
        num_in_windows=so_far.num_in_windows + sum(bool(result.windows) for result in prepared),
    )


def _holds_only(text: str, allowed: bytes) -> bool:
    return text.isascii() and not text.encode("ascii").translate(None, allowed)
