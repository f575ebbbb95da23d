"""``esm2-run contacts``."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from runtime.engine_options import options_of, run_options
from runtime.errors import Esm2Error, InputError
from runtime.one_line_errors import SOME_REJECTED, one_line_errors
from runtime.readers.record_options import length_options
from runtime.terminal import say, tell, warn


@click.command(epilog="Example: esm2-run contacts artifacts/NAME x.fasta -o contacts.npz")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("fasta", nargs=-1, required=True, metavar="FASTA...")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="A .npz or .h5 file of maps [L, L], by id; or .csv or .parquet of the likeliest pairs.",
)
@click.option(
    "--min-separation",
    type=click.IntRange(min=0),
    help="Residues between those of a pair in a table.  [default: 6]",
)
@click.option(
    "--top",
    metavar="N",
    help="Pairs of a protein in a table: a number, L (its length), L/5, or all.  [default: L]",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="A picture of each map, as PNG.",
)
@run_options
@length_options
@one_line_errors(Esm2Error, OSError)
def contacts(
    artifact: Path, fasta: tuple[str, ...], output: Path, min_separation: int | None,
    top: str | None, plot: Path | None, **given: Any,
) -> None:  # fmt: skip
    """Write which residues touch: probabilities by fair-esm's contact head.

    ARTIFACT must be built with --contacts. Exits with 0 if every record was run, 3 if some were
    rejected (--on-error skip: they are listed in OUTPUT.rejected.tsv), 2 on errors.
    """
    from runtime.contacts.outputs import Pairs
    from runtime.contacts.run import contacts as run
    from runtime.readers.paths import files_of

    if plot is not None and find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib. pip install 'esm2-engines[plot]'")
    pairs = None
    if min_separation is not None or top is not None:
        pairs = Pairs(6 if min_separation is None else min_separation, top or "L")
    options = options_of(artifact, files_of(fasta, False, str(output)), given)
    found = run(options, output, pairs, plot, tell, warn)
    totals = found.totals
    say(
        f"{output}: {totals.proteins:,} proteins, {totals.tokens:,} tokens in "
        f"{found.seconds:.1f} s ({totals.tokens / found.seconds:,.0f} tokens/s, loading included), "
        f"{output.stat().st_size / 1e6:.1f} MB"
    )
    if plot is not None:
        say(f"  pictures: {plot}")
    if found.rejected:
        say(f"  records rejected, listed in {found.rejected_path}: {found.rejected:,}")
        sys.exit(SOME_REJECTED)
