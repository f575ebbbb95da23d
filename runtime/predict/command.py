"""``esm2-run predict``: labels of a fine-tuned classifier or of a probe, for files of proteins."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.device import default_max_tokens
from runtime.engine_options import (
    attention_of,
    attention_options,
    concurrency_option,
    device_option,
    engine_option,
)
from runtime.errors import Esm2Error
from runtime.one_line_errors import SOME_REJECTED, one_line_errors
from runtime.readers.record_options import length_options, record_options
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
@engine_option
@device_option
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    help="Budget of a pack; a longer protein gets a pack of its own.  [default: "
    f"{default_max_tokens('cpu')}, on a card {default_max_tokens('cuda')}]",
)
@length_options
@record_options
@attention_options
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: every core]")
@concurrency_option
@one_line_errors(Esm2Error, OSError)
def predict(
    artifact: Path, inputs: tuple[str, ...], output: Path, engine: str, device: str,
    max_tokens: int | None, max_length: int | None, long: Any, on_error: str, unknown: Any,
    upper: bool, strip_stop: bool, attention: Any, v1_attention: bool, threads: int | None,
    concurrency: int | None,
) -> None:  # fmt: skip
    """Predict with the head of ARTIFACT, for the proteins of FASTA files.

    INPUT: files, folders, patterns in quotes, or - for standard input. Writes label and probability
    of each protein, or of each residue; of labels that are judged alone, and of values, a column
    each. Exits with 0 if every record was run, 3 if some were rejected (--on-error skip: they are
    listed in OUTPUT.rejected.tsv), 2 on errors.
    """
    from runtime.predict.run import PredictOptions
    from runtime.predict.run import predict as run
    from runtime.readers.paths import files_of
    from runtime.readers.records import RecordOptions

    options = PredictOptions(
        artifact=artifact,
        inputs=files_of(inputs, False, str(output)),
        output=output,
        engine=engine,
        device=device,
        attention=attention_of(attention, v1_attention),
        threads=threads,
        concurrency=concurrency,
        max_tokens=max_tokens,
        skip=on_error == "skip",
        records=RecordOptions(unknown, upper, strip_stop, max_length, long),
    )
    done = run(options, tell, warn)
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
