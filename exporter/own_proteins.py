"""A user's own proteins, from FASTA, as text for eager fair-esm and for the engines."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import InputError
from runtime.readers.fasta import check_readable, read_fasta
from runtime.readers.records import RecordOptions, Rejection, prepare
from runtime.readers.scan import all_rejected

if TYPE_CHECKING:
    from exporter.weights.calibration import Calibration


def read_sequences(
    fasta: str, options: RecordOptions, skip: bool, warn: Callable[[str], None]
) -> list[str]:
    """The sequences of a FASTA file, read as ``esm2-run embed`` reads them.

    Args:
        fasta: a file, or ``-`` for standard input.
        options: what is taken beyond the alphabet.
        skip: leave out records that cannot be run, and ``warn`` of them.
        warn: takes a line for the user.

    Raises:
        InputError: what ``read_fasta`` raises; a record that cannot be run, with ``skip`` only if
            none can.
    """
    check_readable([fasta])
    sequences: list[str] = []
    rejected: list[Rejection] = []
    for record in read_fasta([fasta]):
        result = prepare(record, options)
        if not isinstance(result, Rejection):
            sequences.append(result.text(record))
        elif skip:
            rejected.append(result)
        else:
            raise InputError(str(result))
    if rejected and not sequences:
        raise all_rejected(len(rejected), rejected[0])
    if rejected:
        warn(f"warning: {len(rejected)} records are left out, the first: {rejected[0]}")
    return sequences


def calibration_of(fasta: str) -> "Calibration":
    """The proteins on which a user has int8 look for large channels.

    Raises:
        InputError: what ``read_sequences`` raises; every record must be one that can be run.
    """
    from exporter.weights.calibration import first_proteins

    sequences = read_sequences(fasta, RecordOptions("error", False, False), False, lambda _: None)
    return first_proteins(Path(fasta).name, sequences)
