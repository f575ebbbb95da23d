"""``esm2-run predict``: labels of a fine-tuned classifier or of a probe, for files of proteins."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.engine_options import options_of, run_options
from runtime.errors import Esm2Error
from runtime.one_line_errors import SOME_REJECTED, one_line_errors
from runtime.readers.record_options import length_options
from runtime.terminal import say, tell, warn

if TYPE_CHECKING:
    from runtime.predict.run import Predicted


@click.command(epilog="Example: esm2-run predict artifacts/NAME proteins.fasta -o labels.csv")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Where to write: a .csv or .parquet file.",
)
@run_options
@length_options
@one_line_errors(Esm2Error, OSError)
def predict(artifact: Path, inputs: tuple[str, ...], output: Path, **given: Any) -> None:
    """Predict with the head of ARTIFACT, for the proteins of FASTA files.

    INPUT: files, folders, patterns in quotes, or - for standard input. Writes label and probability
    of each protein, or of each residue; of labels that are judged alone, and of values, a column
    each. Exits with 0 if every record was run, 3 if some were rejected (--on-error skip: they are
    listed in OUTPUT.rejected.tsv), 2 on errors.
    """
    from runtime.predict.run import predict as run
    from runtime.readers.paths import files_of

    options = options_of(artifact, files_of(inputs, False, str(output)), given)
    done = run(options, output, tell, warn)
    _summarise(output, done)
    if done.rejected:
        sys.exit(SOME_REJECTED)


def _summarise(output: Path, done: "Predicted") -> None:
    tokens = done.totals.tokens
    say(
        f"{output}: {done.totals.proteins:,} proteins, {done.rows:,} rows, {tokens:,} tokens in "
        f"{done.seconds:.1f} s ({tokens / done.seconds:,.0f} tokens/s, loading included), "
        f"{output.stat().st_size / 1e6:.1f} MB"
    )
    if done.rejected:
        say(f"  records rejected, listed in {done.rejected_path}: {done.rejected:,}")
