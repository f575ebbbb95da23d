"""``esm2-run score``, ``perplexity`` and ``logits``."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.engine_options import options_of, run_options
from runtime.errors import Esm2Error, InputError
from runtime.one_line_errors import SOME_REJECTED, one_line_errors
from runtime.option_group import Decorator, option_group
from runtime.terminal import say, tell, warn

if TYPE_CHECKING:
    from runtime.embed_files import Summary
    from runtime.variants.run import Job
    from runtime.writers.writing import Formats

MB = 1_000_000
# As in runtime.variants.conventions, which needs NumPy: --help does not.
CONVENTIONS = ("masked-marginals", "wt-marginals", "pseudo-ppl")

_artifact = click.argument("artifact", type=click.Path(path_type=Path))
_fasta = click.argument("fasta", nargs=-1, required=True, metavar="FASTA...")
_options = option_group(
    click.option(
        "--resume", is_flag=True, help="Go on with a folder behind its last part; or begin one."
    ),
    click.option(
        "--part-mb",
        type=click.FloatRange(min=0, min_open=True),
        default=256,
        show_default=True,
        help="Numbers in a file of a folder, in MB.",
    ),
    run_options,
)


def _output(what: str) -> Decorator:
    return click.option(
        "-o", "--output", required=True, help=f"Where to write: {what}; or a folder, in parts."
    )


@click.command(
    epilog="Example: esm2-run score artifacts/NAME --wild-type wt.fasta --deep -o deep.csv"
)
@_artifact
@click.option("--wild-type", required=True, metavar="FASTA", help="The proteins as they were.")
@click.option(
    "--variants",
    metavar="TABLE",
    help="CSV, TSV or Parquet with a column of substitutions, A12G or A12G:S45T.",
)
@click.option("--deep", is_flag=True, help="Score all single substitutions, in place of a table.")
@_output("a .csv, .tsv or .parquet file")
@click.option(
    "--convention",
    type=click.Choice(CONVENTIONS),
    default=CONVENTIONS[0],
    show_default=True,
    help="What a score is; the three of fair-esm's variant-prediction.",
)
@click.option(
    "--offset-idx",
    type=int,
    default=1,
    show_default=True,
    help="Number of a protein's first residue in the table.",
)
@click.option(
    "--mutation-col", default="mutant", show_default=True, help="The table's column of variants."
)
@click.option(
    "--id-column",
    metavar="NAME",
    help="The table's column of wild types' ids, where the FASTA file holds several.",
)
@click.option("--plot", metavar="FOLDER", help="With --deep: a heat map of each protein, as PNG.")
@_options
@one_line_errors(Esm2Error, OSError)
def score(
    artifact: Path, wild_type: str, variants: str | None, deep: bool, output: str,
    convention: str, offset_idx: int, mutation_col: str, id_column: str | None, plot: str | None,
    **given: Any,
) -> None:  # fmt: skip
    """Score variants of proteins: is the substitution likely?

    Every row is looked at before anything is run. Exits with 0 if every variant was scored, 3 if
    some were left out (--on-error skip: they are listed in OUTPUT.rejected.tsv), 2 on errors.
    """
    from runtime.dataset.folder import is_dataset
    from runtime.variants.jobs import Asked, scoring_job
    from runtime.writers.writing import TABLES

    if deep == (variants is not None):
        raise InputError("give --variants TABLE, or --deep for all single substitutions")
    if plot is not None and (not deep or is_dataset(output)):
        raise InputError("--plot goes with --deep, and with one file as output")
    if plot is not None and find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib. pip install 'esm2-engines[plot]'")
    _check_output(output, TABLES, given)
    asked = Asked(wild_type, variants, convention, offset_idx, mutation_col, id_column)
    inputs = (wild_type,) if variants is None else (wild_type, variants)
    job = scoring_job(options_of(artifact, inputs, given), asked, tell)
    if plot is None:
        _run(job, output, given)
        return
    from runtime.variants.heat_map import DeepScores
    from runtime.variants.sources import read_wild_types
    from runtime.writers.writing import naming_errors

    scores = DeepScores(read_wild_types(wild_type, job.options.records), offset_idx)
    _run(job, output, given, scores.seen)
    with naming_errors(Path(plot)):
        paths = scores.draw(Path(plot), convention)
    say(f"{plot}: {len(paths):,} heat maps")


@click.command(epilog="Example: esm2-run perplexity artifacts/NAME proteins.fasta -o table.csv")
@_artifact
@_fasta
@_output("a .csv, .tsv or .parquet file")
@_options
@one_line_errors(Esm2Error, OSError)
def perplexity(artifact: Path, fasta: tuple[str, ...], output: str, **given: Any) -> None:
    """Compute the pseudo-perplexity of each protein of FASTA files.

    exp(-1/L sum log p(residue | the others)): a protein of L residues is run L times, each residue
    masked once. Exits as embed does.
    """
    from runtime.readers.paths import files_of
    from runtime.variants.jobs import perplexity_job
    from runtime.writers.writing import TABLES

    _check_output(output, TABLES, given)
    options = options_of(artifact, files_of(fasta, False, output), given)
    _run(perplexity_job(options, tell), output, given)


@click.command(epilog="Example: esm2-run logits artifacts/NAME proteins.fasta -o logits.npz")
@_artifact
@_fasta
@_output("a .npz, .h5 or .parquet file")
@click.option(
    "--columns",
    type=click.Choice(("20", "33")),
    default="20",
    show_default=True,
    help="20: amino acids, in the order ACDEFGHIKLMNPQRSTVWY. 33: all tokens. Both by the softmax "
    "over all 33.",
)
@_options
@one_line_errors(Esm2Error, OSError)
def logits(artifact: Path, fasta: tuple[str, ...], output: str, columns: str, **given: Any) -> None:
    """Write log-probabilities of what stands at each residue of FASTA files' proteins.

    One forward a protein; <mask> in a sequence masks a residue. Exits as embed does.
    """
    from runtime.readers.paths import files_of
    from runtime.variants.jobs import logits_job
    from runtime.writers.writing import FORMATS

    _check_output(output, FORMATS, given)
    options = options_of(artifact, files_of(fasta, False, output), given)
    _run(logits_job(options, columns, tell), output, given)


def _check_output(output: str, formats: "Formats", given: dict[str, Any]) -> None:
    from runtime.dataset.folder import is_dataset
    from runtime.writers import check_output

    if not output:
        raise InputError("-o is empty. Name a file or a folder")
    if is_dataset(output):
        return
    path = Path(output)
    if given["resume"]:
        raise InputError(f"--resume is for folders, and {path} is a file. Give -o {path.stem}/")
    check_output(path, formats)


def _run(job: "Job", output: str, given: dict[str, Any], seen: Any = iter) -> None:
    from runtime.dataset.folder import is_dataset
    from runtime.variants.run import to_file, to_folder

    path = Path(output)
    if is_dataset(output):
        done = to_folder(job, path, given["resume"], round(given["part_mb"] * MB), tell, warn)
    else:
        done = to_file(job, path, tell, warn, seen)
    _summarise(path, job.what, done)
    if done.rejected:
        sys.exit(SOME_REJECTED)


def _summarise(output: Path, what: str, done: "Summary") -> None:
    if done.spec is None:
        say(f"{output}: finished before with {done.proteins:,} {what}, nothing is left to do")
        return
    say(
        f"{output}: {done.totals.proteins:,} {what} in {done.seconds:.1f} s "
        f"({done.totals.proteins / done.seconds:,.0f} a second, loading included), "
        f"{done.bytes / MB:.1f} MB"
    )
    if before := done.proteins - done.totals.proteins:
        say(f"  with those of before: {before + done.totals.proteins:,}")
    if done.rejected:
        say(f"  left out, listed in {done.rejected_path}: {done.rejected:,}")
