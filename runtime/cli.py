"""``esm2-run``: look at an artifact, and embed FASTA files with it."""

import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.device import default_max_tokens
from runtime.engine_options import attention_of, attention_options, device_option
from runtime.engines.table import FORMATS
from runtime.errors import EngineError, Esm2Error, InputError, UnsupportedError
from runtime.one_line_errors import one_line_errors
from runtime.pooling import POOL_CHOICES
from runtime.readers.record_options import record_options
from runtime.terminal import say

if TYPE_CHECKING:
    from runtime.engine import EngineSpec
    from runtime.manifest import Manifest
    from runtime.readers.records import Record
    from runtime.runner import Embedding, Totals
    from runtime.writers.rejected_file import RejectedFile

SOME_REJECTED = 3
FAILED_SELFTEST = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="esm2-engines")
def main() -> None:
    """Run frozen ESM-2 engines on packed proteins."""


@main.command(epilog="Example: esm2-run info artifacts/NAME")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@one_line_errors(Esm2Error, OSError)
def info(artifact: Path, as_json: bool) -> None:
    """Show what ARTIFACT holds; every file is checked against its SHA-256."""
    from runtime import manifest as manifests

    manifest = manifests.read(artifact)
    if as_json:
        click.echo((artifact / manifests.FILE_NAME).read_text(), nl=False)
    else:
        say("\n".join(_describe(manifest)))


@main.command(epilog="Example: esm2-run embed artifacts/NAME proteins.fasta -o embeddings.npz")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("fasta", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Where to write: .npz, .parquet or .h5.",
)
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    help=f"{', '.join(FORMATS)}, or auto: the first one that runs here, never int8.",
)
@device_option
@click.option(
    "--pool",
    default="mean",
    show_default=True,
    type=click.Choice(POOL_CHOICES),
    help="mean: residues only. none: one vector per residue.",
)
@click.option("--layer", type=int, help="Which exported layer to embed with.  [default: the last]")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    help="Budget of a pack; a longer protein gets a pack of its own.  [default: "
    f"{default_max_tokens('cpu')}, on a card {default_max_tokens('cuda')}]",
)
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
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    help="Packs that run at once on a CPU.  [default: by cores, proteins and memory]",
)
@click.option("--debug", is_flag=True, help="Log one line for each pack.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@one_line_errors(Esm2Error, OSError)
def embed(
    artifact: Path, fasta: tuple[str, ...], output: Path, engine: str, device: str, pool: Any,
    layer: int | None, max_tokens: int | None, on_error: str, unknown: Any, upper: bool,
    strip_stop: bool, attention: Any, v1_attention: bool, tf32: bool, cuda_graphs: bool,
    threads: int | None, concurrency: int | None, debug: bool, as_json: bool,
) -> None:  # fmt: skip
    """Embed the proteins of FASTA files.

    FASTA may be compressed (.gz, .zst, .bz2, .xz); - is standard input.

    Exits with 0 if every record was embedded, 3 if some were rejected (--on-error skip: they are
    listed in OUTPUT.rejected.tsv), 2 if nothing was written.
    """
    from runtime import manifest as manifests
    from runtime.concurrency import packing_for
    from runtime.loading import load
    from runtime.progress import with_progress
    from runtime.readers.fasta import check_readable, read_fasta
    from runtime.readers.nucleotides import watch_for_nucleotides
    from runtime.readers.records import RecordOptions
    from runtime.readers.scan import scan
    from runtime.runner import AsyncInferenceRunner
    from runtime.writers import check_output, write_embeddings
    from runtime.writers.rejected_file import rejected_file

    if debug:
        import logging

        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        logging.getLogger("runtime").setLevel(logging.DEBUG)  # not the libraries
    check_output(output)
    check_readable(fasta)
    started = time.perf_counter()
    chosen = attention_of(attention, v1_attention)
    manifest = manifests.read(artifact, check_files=False)  # before files that may be large
    skip = on_error == "skip"
    found = scan(fasta, RecordOptions(unknown, upper, strip_stop))
    found.check(skip)
    embed_dim = manifest.architecture.embed_dim
    on_cpu = max_tokens or default_max_tokens("cpu")
    packing = packing_for(found, embed_dim, on_cpu, threads, concurrency)
    loaded = load(artifact, engine, device, chosen, threads, packing.concurrency, tf32, cuda_graphs)
    with loaded, rejected_file(output, len(fasta) > 1) as rejected:
        most = max_tokens or default_max_tokens(loaded.spec.device)
        # Smaller packs are for engines that share their cores among them.
        budget = packing.max_tokens if loaded.concurrency > 1 else most
        runner = AsyncInferenceRunner(
            loaded, budget, pool, layer, unknown, upper, strip_stop,
            on_rejected=rejected.add if skip else None,
        )  # fmt: skip
        spec = loaded.spec
        _say(
            f"{spec.artifact}: {spec.format} ({spec.library}) on {spec.device}, {spec.dtype}, "
            f"attention: {spec.attention}"
            + (f" ({spec.attention_reason})" if spec.attention_reason else "")
        )
        if spec.synthetic:
            _warn("this artifact's weights are random: its embeddings mean nothing")
        seen = _Ids()
        records = watch_for_nucleotides(read_fasta(fasta), _warn)
        total = found.num_tokens if found.is_whole else None
        embeddings = with_progress(runner.run(seen.watch(records)), runner.totals, total, _say)
        metadata = {
            "artifact": spec.artifact, "engine": spec.format, "pool": pool,
            "layer": str(spec.layers[-1] if layer is None else layer),
        }  # fmt: skip
        write_embeddings(output, _unless_empty(embeddings, runner.totals, rejected), metadata)
    _report_oddities(runner.totals, seen, most)
    seconds = time.perf_counter() - started
    _summarise(output, spec, runner.totals, rejected, seconds, as_json)
    if rejected.count:
        sys.exit(SOME_REJECTED)


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


class _Ids:
    """Watches a stream for ids that occur twice; keeps 8 bytes of each, not the ids."""

    def __init__(self) -> None:
        self.repeated: list[str] = []

    def watch(self, records: "Iterable[Record]") -> "Iterator[Record]":
        seen: set[int] = set()
        for record in records:
            digest = hash(record.id)
            if digest in seen:
                self.repeated.append(record.id)
            seen.add(digest)
            yield record


def _unless_empty(
    embeddings: "Iterable[Embedding]", totals: "Totals", rejected: "RejectedFile"
) -> "Iterator[Embedding]":
    """Raises at the end where there was none: then nothing is written."""
    from runtime.readers.scan import all_rejected

    yield from embeddings
    if totals.proteins == 0:
        if rejected.first:
            raise all_rejected(rejected.count, rejected.first)
        raise InputError("the input holds no proteins")


def _report_oddities(totals: "Totals", seen: _Ids, max_tokens: int) -> None:
    for names, what, consequence in (
        (seen.repeated, "repeated ids", "every record is kept, in input order"),
        (totals.without_residues, "records without residues", "their mean embedding is NaN"),
        (totals.over_budget, f"proteins longer than {max_tokens} tokens", "each ran alone"),
    ):
        if names:
            examples = ", ".join(dict.fromkeys(names[:3])) + (", ..." if len(names) > 3 else "")
            _warn(f"{what}: {len(names)} ({examples}); {consequence}")


def _summarise(
    output: Path,
    spec: "EngineSpec",
    totals: "Totals",
    rejected: "RejectedFile",
    seconds: float,
    as_json: bool,
) -> None:
    if as_json:
        summary = {
            "output": str(output), "proteins": totals.proteins, "tokens": totals.tokens,
            "packs": totals.packs, "rejected": rejected.count,
            "rejected_file": str(rejected.path) if rejected.count else None,
            "lower_case": totals.lower_case, "stops": totals.stops, "unknown": totals.unknown,
            "seconds": round(seconds, 3), "engine": dataclasses.asdict(spec),
        }  # fmt: skip
        click.echo(json.dumps(summary, indent=2))
        return
    say(
        f"{output}: {totals.proteins:,} proteins, {totals.tokens:,} tokens in {seconds:.1f} s "
        f"({totals.tokens / seconds:,.0f} tokens/s, loading included), "
        f"{output.stat().st_size / 1e6:.1f} MB"
    )
    for count, what in (
        (totals.lower_case, "lower case taken as upper case, in proteins"),
        (totals.stops, "a * at the end removed, in proteins"),
        (totals.unknown, "characters outside the alphabet replaced, in proteins"),
        (rejected.count, f"records rejected, listed in {rejected.path}"),
    ):
        if count:
            say(f"  {what}: {count:,}")


def _describe(manifest: "Manifest") -> Iterator[str]:
    shape = manifest.architecture
    weights = manifest.weights
    yield manifest.name
    yield (
        f"  architecture  {shape.name}: {shape.num_layers} layers, {shape.embed_dim} wide, "
        f"{shape.num_heads} heads of {shape.head_dim}"
    )
    revision = f" at {weights.revision}" if weights.revision else ""
    yield f"  weights       {weights.kind}: {weights.source}{revision}, {manifest.dtype}"
    if weights.left_out:
        yield f"                left out of the checkpoint: {', '.join(weights.left_out)}"
    if not weights.lm_head:
        yield "                no LM head in this checkpoint: embeddings only, no logits"
    if weights.kind == "synthetic":
        yield "                RANDOM WEIGHTS: for trying the project, the embeddings mean nothing"
    for direction, tensors in (
        ("inputs", manifest.signature.inputs), ("outputs", manifest.signature.outputs),
    ):  # fmt: skip
        shown = (f"{t.name} {t.dtype}[{', '.join(map(str, t.shape))}]" for t in tensors)
        yield f"  {direction:13} {', '.join(shown)}"
    for name, entry in manifest.engines.items():
        parity = manifest.parity.get(name)
        verdict = (
            "not verified"
            if parity is None
            else (
                f"{'passed' if parity.passed else 'FAILED'} parity: worst relative L2 "
                f"{parity.worst_relative_l2:.1e}, {parity.worst_ratio_to_eager:.2f} x eager's own"
            )
        )
        yield f"  engine        {name}: {entry.file}, {verdict}"
        for plan in entry.plans:
            yield (
                f"    plan        {plan.file}: compute capability {plan.compute_capability}, "
                f"attention {plan.attention}, proteins of up to {plan.profiles[-1].max_seqlen} "
                "tokens"
            )
    total = sum(entry.bytes for entry in manifest.files.values())
    yield f"  files         {len(manifest.files)} unchanged, {total / 1e6:.1f} MB"


def _say(message: str) -> None:
    say(message, err=True)


def _warn(message: str) -> None:
    say(f"warning: {message}", err=True, fg="yellow")


if __name__ == "__main__":
    main()
