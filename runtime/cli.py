"""``esm2-run``: look at an artifact, and embed FASTA files with it."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.contacts.command import contacts
from runtime.device import MAX_TOKENS_RULE
from runtime.engine_options import (
    attention_of,
    attention_options,
    check_ray,
    concurrency_option,
    device_option,
    engine_option,
    ray_options,
)
from runtime.errors import EngineError, Esm2Error, InputError, UnsupportedError
from runtime.extract.command import extract, run_and_report
from runtime.one_line_errors import SOME_REJECTED, one_line_errors
from runtime.pooling import POOL_CHOICES
from runtime.predict.command import predict
from runtime.readers.record_options import length_options, record_options
from runtime.server.command import serve
from runtime.terminal import say, tell, warn
from runtime.variants.command import logits, perplexity, score

if TYPE_CHECKING:
    from runtime.embed_files import Summary

MB = 1_000_000
UNFINISHED = 3
FAILED_SELFTEST = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="esm2-engines")
def main() -> None:
    """Run frozen ESM-2 engines on packed proteins."""


main.add_command(extract)
for _command in (score, perplexity, logits, predict, contacts, serve):
    main.add_command(_command)


@main.command(epilog="Example: esm2-run info artifacts/NAME")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@one_line_errors(Esm2Error, OSError)
def info(artifact: Path, as_json: bool) -> None:
    """Show what ARTIFACT holds; every file is checked against its SHA-256."""
    from runtime import manifest as manifests
    from runtime.describe import describe, signature_line
    from runtime.provenance import describe as describe_provenance

    manifest = manifests.read(artifact)
    if as_json:
        click.echo((artifact / manifests.FILE_NAME).read_text(), nl=False)
    else:
        provenance = describe_provenance(artifact, manifest)
        say("\n".join([*describe(manifest), *provenance, signature_line(artifact)]))


@main.command(epilog="Example: esm2-run verify-signature artifacts/NAME --public-key me.pub")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--public-key",
    required=True,
    metavar="FILE",
    help="Who must have signed: a public key in PEM, or certificates of who vouches for signers.",
)
@one_line_errors(Esm2Error, OSError)
def verify_signature(artifact: Path, public_key: str) -> None:
    """Compare every file of ARTIFACT with its signature; nothing of it is loaded.

    Exits with 0 if all of them are what was signed, else with 2.
    """
    from runtime import manifest as manifests

    count = len(manifests.read(artifact, trust=public_key).files) + 1
    say(f"{artifact}: {count} files are what {public_key} signed", fg="green")


@main.command(epilog="Example: esm2-run embed artifacts/NAME proteins.fasta -o embeddings.npz")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--sequence-column",
    metavar="NAME",
    help="INPUT are tables (CSV, TSV, Parquet), with sequences in this column.",
)
@click.option(
    "--id-column", metavar="NAME", help="The tables' column of ids.  [default: record_N, by row]"
)
@click.option(
    "-o",
    "--output",
    required=True,
    help="Where to write: a .npz, .parquet or .h5 file; or a folder, in parts, for runs too long "
    "to lose.",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(("pt",)),
    help="pt: a folder of .pt files, one a protein, as fair-esm's extract.py writes them; --pool "
    "mean,none,cls and --layer say what is in them.  [default: by -o]",
)
@click.option(
    "--resume", is_flag=True, help="Go on with a folder behind its last part; or begin a new one."
)
@click.option(
    "--part-mb",
    type=click.FloatRange(min=0, min_open=True),
    default=256,
    show_default=True,
    help="Vectors in a file of a folder, in MB.",
)
@engine_option
@device_option
@click.option(
    "--pool",
    default="mean",
    show_default=True,
    metavar="NAMES",
    help=f"{', '.join(POOL_CHOICES)}. mean: residues only. none: one vector per residue. Several "
    "with commas: a column of Parquet each, from one run.",
)
@click.option(
    "--layer",
    metavar="NUMBERS",
    help="Which exported layer to embed with, or several with commas.  [default: the last]",
)
@click.option(
    "--store",
    type=click.Choice(("float16", "float32")),
    help="What numbers are written in. float16: half the bytes, rounded to 11 bits.  "
    "[default: the engine's]",
)
@click.option(
    "--with",
    "added",
    metavar="NAMES",
    help="Columns beside the vectors, in Parquet: header, sequence, sha256 (of the sequence).",
)
@click.option(
    "--cache",
    metavar="FOLDER",
    help="Keep vectors over runs: of what is in it already nothing is computed again.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    help="Budget of a pack; a longer protein gets a pack of its own.  [default: "
    f"{MAX_TOKENS_RULE}]",
)
@length_options
@record_options
@attention_options
@click.option("--tf32", is_flag=True, help="On CUDA, round float32 to TF32: fast, not exact.")
@click.option(
    "--cuda-graphs", is_flag=True, help="On CUDA, replay captured graphs for small packs."
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads.  [default: OMP_NUM_THREADS, else every core of the mask and the quota]",
)
@concurrency_option
@ray_options
@click.option("--debug", is_flag=True, help="Log one line for each pack.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@one_line_errors(Esm2Error, OSError)
def embed(
    artifact: Path, inputs: tuple[str, ...], sequence_column: str | None, id_column: str | None,
    output: str, file_format: str | None, resume: bool, part_mb: float, engine: str, device: str,
    pool: str, store: str | None, added: str | None, cache: str | None, layer: str | None,
    max_tokens: int | None, max_length: int | None, long: Any, on_error: str, unknown: Any,
    upper: bool, strip_stop: bool, attention: Any, v1_attention: bool, tf32: bool,
    cuda_graphs: bool, threads: int | None, concurrency: int | None, ray: str | None,
    ray_actors: int | None, debug: bool, as_json: bool,
) -> None:  # fmt: skip
    """Embed the proteins of FASTA files, or of tables.

    INPUT: files, folders, patterns in quotes such as 'proteomes/**/*.faa.gz', or - for standard
    input. FASTA, CSV and TSV may be compressed (.gz, .zst, .bz2, .xz).

    Exits with 0 if every record was embedded, 3 if some were rejected (--on-error skip: they are
    listed in OUTPUT.rejected.tsv, or in the folder's _rejected/rejected.parquet), 2 if nothing was
    written or the run did not come to its end.
    """
    from runtime.dataset.folder import is_dataset
    from runtime.embed_files import embed_dataset, embed_file
    from runtime.embed_options import EmbedOptions
    from runtime.extract.of_embed import extract_options
    from runtime.readers.paths import files_of
    from runtime.readers.records import RecordOptions
    from runtime.readers.tables import Columns
    from runtime.several import check_vectors, layers_of, pools_of
    from runtime.writers.columns import columns_of

    if id_column and not sequence_column:
        raise InputError("--id-column is for tables: give --sequence-column too")
    check_ray(ray, ray_actors)
    if not output:
        raise InputError("-o is empty. Name a file or a folder")
    if cache == "":
        raise InputError("--cache is empty. Name a folder")
    layers, pools = layers_of(layer), pools_of(pool)
    if file_format is None:
        check_vectors(layers, pools)
    if debug:
        import logging

        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        logging.getLogger("runtime").setLevel(logging.DEBUG)  # not the libraries
    options = EmbedOptions(
        artifact=artifact,
        inputs=files_of(inputs, sequence_column is not None, output),
        engine=engine,
        device=device,
        attention=attention_of(attention, v1_attention),
        tf32=tf32,
        cuda_graphs=cuda_graphs,
        threads=threads,
        concurrency=concurrency,
        pools=pools,
        layers=layers,
        max_tokens=max_tokens,
        skip=on_error == "skip",
        records=RecordOptions(unknown, upper, strip_stop, max_length, long),
        columns=Columns(sequence_column, id_column) if sequence_column else None,
        store=store,
        cache=cache,
        added=columns_of(added),
        ray=ray,
        ray_actors=ray_actors,
    )
    path = Path(output)
    if file_format == "pt":
        run_and_report(extract_options(options, path, resume, as_json))
        return
    if is_dataset(output):
        summary = embed_dataset(options, path, resume, round(part_mb * MB), tell, warn)
    elif resume:
        raise InputError(f"--resume is for folders, and {path} is a file. Give -o {path.stem}/")
    else:
        summary = embed_file(options, path, tell, warn)
    _summarise(path, summary, as_json)
    if summary.rejected:
        sys.exit(SOME_REJECTED)


@main.command(epilog="Example: esm2-run status embeddings/")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@one_line_errors(Esm2Error, OSError)
def status(folder: Path, as_json: bool) -> None:
    """Show how far the run is that writes FOLDER, or was when it ended.

    Exits with 0 if it is finished, 3 if it is not.
    """
    from runtime.dataset.status import status_of

    found = status_of(folder)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        say("\n".join(found.lines()))
    sys.exit(0 if found.state == "finished" else UNFINISHED)


@main.command(epilog="Example: esm2-run selftest artifacts/NAME")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--engine", help="Only this one.  [default: every engine that can run here]")
@device_option
@attention_options
@click.option("--json", "as_json", is_flag=True, help="Print every comparison as JSON.")
@one_line_errors(Esm2Error, OSError)
def selftest(
    artifact: Path,
    engine: str | None,
    device: str,
    attention: Any,
    v1_attention: bool,
    as_json: bool,
) -> None:
    """Compare ARTIFACT's engines with the answers that it carries, on this machine.

    A few proteins and eager fair-esm's float64 answers are in the artifact. Exits with 0 if every
    engine that can run here passed, 1 if one failed, 2 if none could run.
    """
    from runtime import manifest as manifests
    from runtime.loading import load
    from runtime.selftest import SelfTest
    from runtime.selftest import selftest as run_selftest

    manifest = manifests.read(artifact)
    chosen = attention_of(attention, v1_attention)
    results: list[SelfTest] = []
    broken: dict[str, str] = {}
    not_run: dict[str, str] = {}
    if engine is not None and engine not in manifest.engines:
        raise InputError(
            f"artifact {artifact} holds no engine {engine!r}, it holds "
            f"{', '.join(manifest.engines)}"
        )
    for name in [engine] if engine else manifest.engines:
        try:
            with load(artifact, name, device, chosen, check_files=False) as loaded:
                results.append(run_selftest(loaded, artifact, manifest, check_files=False))
        except UnsupportedError as error:
            not_run[name] = str(error)
        except EngineError as error:
            broken[name] = str(error)
    if as_json:
        tests = [{**dataclasses.asdict(result), "passed": result.passed} for result in results]
        click.echo(json.dumps({"tests": tests, "broken": broken, "not_run": not_run}, indent=2))
    else:
        for result in results:
            say(result.worst_line(), fg=None if result.passed else "red")
        for reason in broken.values():
            say(reason, fg="red")
        for reason in not_run.values():
            say(f"not run: {reason}")
    if not results and not broken:
        raise UnsupportedError(f"no engine of {manifest.name!r} runs here: nothing was compared")
    all_passed = not broken and all(result.passed for result in results)
    sys.exit(0 if all_passed else FAILED_SELFTEST)


def _summarise(output: Path, summary: "Summary", as_json: bool) -> None:
    totals = summary.totals
    if as_json:
        click.echo(
            json.dumps(
                {
                    "output": str(output), "proteins": summary.proteins, "tokens": summary.tokens,
                    "packs": totals.packs,
                    "equal": totals.equal, "found": totals.found, "rejected": summary.rejected,
                    "rejected_file": str(summary.rejected_path) if summary.rejected else None,
                    "lower_case": totals.lower_case, "stops": totals.stops,
                    "unknown": totals.unknown, "cut": totals.cut,
                    "in_windows": totals.in_windows,
                    "seconds": round(summary.seconds, 3),
                    "engine": dataclasses.asdict(summary.spec) if summary.spec else None,
                },
                indent=2,
            )
        )  # fmt: skip
        return
    if summary.spec is None:
        say(f"{output}: finished before with {summary.proteins:,} proteins, nothing is left to do")
        return
    say(
        f"{output}: {totals.proteins:,} proteins, {totals.tokens:,} tokens in "
        f"{summary.seconds:.1f} s ({totals.tokens / summary.seconds:,.0f} tokens/s, loading "
        f"included), {summary.bytes / MB:.1f} MB"
    )
    if before := summary.proteins - totals.proteins:
        say(f"  with those of before: {before + totals.proteins:,}")
    for count, what in (
        (totals.lower_case, "lower case taken as upper case, in proteins"),
        (totals.stops, "a * at the end removed, in proteins"),
        (totals.unknown, "characters outside the alphabet replaced, in proteins"),
        (totals.cut, "cut to --max-length, proteins"),
        (totals.in_windows, "run in windows of --max-length, proteins"),
        (totals.equal, "equal to another protein near by, and computed once with it"),
        (totals.found, "found in the cache"),
        (summary.rejected, f"records rejected, listed in {summary.rejected_path}"),
    ):
        if count:
            say(f"  {what}: {count:,}")


if __name__ == "__main__":
    main()
