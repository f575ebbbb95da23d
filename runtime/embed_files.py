"""What ``esm2-run embed`` does: files of proteins in, one file or a dataset out.

The data's path: scan -> packing -> engine -> (records -> runner -> progress) -> writer. A dataset
asks first where it stands, and begins there.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from runtime import manifest as manifests
from runtime.concurrency import memory_of_longest
from runtime.dataset.folder import Dataset, opened
from runtime.dataset.records import SCHEMA_VERSION, Input, Run
from runtime.device import kind_of
from runtime.embed_engine import loaded
from runtime.embed_options import EmbedOptions
from runtime.embed_stream import Say, Stream, strictly, unless_empty
from runtime.engine import Engine, EngineSpec
from runtime.files import sha256
from runtime.manifest_schema import Manifest
from runtime.progress import with_progress
from runtime.readers.fasta import check_readable, is_regular
from runtime.readers.inputs import Inputs
from runtime.readers.records import Rejection, printable
from runtime.readers.scan import Scan, scan
from runtime.runner import AsyncInferenceRunner, Totals, check_layer
from runtime.several import Vectors
from runtime.sliding import TRAINED_ON
from runtime.threads import usable_memory
from runtime.vector_cache import VectorCache
from runtime.writers import check_output, write_embeddings
from runtime.writers.columns import Columns, check_columns
from runtime.writers.rejected_file import rejected_file

# Bytes of a protein that are worth a word.
LEAST_TOLD = 1_000_000_000


@dataclass(frozen=True)
class Summary:
    """What was done.

    Attributes:
        spec: of the engine; None where nothing was left to run.
        totals: of this run.
        proteins, tokens: in the output, those of earlier runs too.
        rejected: records that were left out, those of earlier runs too.
        rejected_path: where they are listed.
        seconds: that this run took.
        bytes: of the output.
    """

    spec: EngineSpec | None
    totals: Totals
    proteins: int
    tokens: int
    rejected: int
    rejected_path: Path
    seconds: float
    bytes: int


def embed_file(options: EmbedOptions, output: Path, say: Say, warn: Say) -> Summary:
    """Embeds into one file, which appears when it is whole.

    Args:
        options: what to do.
        output: ends in .npz, .parquet or .h5.
        say: receives what is to be told.
        warn: receives what is odd.
    """
    started = time.perf_counter()
    check_output(output)
    check_columns(options.added, len(options.pools) * len(options.layers or (0,)), output)
    manifest, inputs, found = _looked_at(options, say)
    with (
        loaded(options, manifest, found, None, say) as (engine, resolved),
        rejected_file(output, len(options.inputs) > 1) as rejected,
        _kept(options, manifest, engine.spec, None, warn) as kept,
    ):
        runner = _runner(options, engine, resolved.max_tokens, rejected.add, kept)
        introduce(engine.spec, say, warn)
        tell_of_the_longest(found, manifest, engine.spec, say)
        stream = Stream(inputs, runner, options.store, warn)
        embeddings = with_progress(stream.embeddings(0), runner.totals, _total(found), say)
        embeddings = unless_empty(embeddings, runner.totals, rejected)
        write_embeddings(
            output, embeddings, _metadata(options, engine), _columns(options, engine.spec)
        )
    stream.report_oddities(resolved.max_tokens)
    return Summary(
        spec=engine.spec,
        totals=runner.totals,
        proteins=runner.totals.proteins,
        tokens=runner.totals.tokens,
        rejected=rejected.count,
        rejected_path=rejected.path,
        seconds=time.perf_counter() - started,
        bytes=output.stat().st_size,
    )


def embed_dataset(
    options: EmbedOptions, output: Path, resume: bool, part_bytes: int, say: Say, warn: Say
) -> Summary:
    """Embeds into a folder of Parquet files, or goes on with one.

    Args:
        options: what to do.
        output: the folder.
        resume: go on with an unfinished run.
        part_bytes: of vectors in a file.
        say: receives what is to be told.
        warn: receives what is odd.
    """
    started = time.perf_counter()
    manifest, inputs, found = _looked_at(options, say)
    run = _run(options, manifest, found)
    with opened(output, run, resume) as dataset:
        if dataset.is_finished:
            return _summary(None, Totals(), dataset, started)
        before = dataset.before.resolved if dataset.before else None
        if before:
            say(f"{output}: goes on behind {dataset.proteins:,} proteins")
        cached = dataset.before.cached if dataset.before else None
        with (
            loaded(options, manifest, found, before, say) as (engine, resolved),
            _kept(options, manifest, engine.spec, cached, warn) as kept,
        ):
            run = msgspec.structs.replace(run, cached=kept.newest if kept else None)
            dataset.begin(run, resolved)
            runner = _runner(options, engine, resolved.max_tokens, dataset.reject, kept)
            introduce(engine.spec, say, warn)
            tell_of_the_longest(found, manifest, engine.spec, say)
            stream = Stream(inputs, runner, options.store, warn)
            embeddings = with_progress(
                stream.embeddings(dataset.next_row), runner.totals, _total(found), say,
                dataset.tokens,
            )  # fmt: skip
            embeddings = unless_empty(embeddings, runner.totals, dataset, dataset.proteins)
            dataset.write(
                embeddings, runner.window_ends, _metadata(options, engine), part_bytes,
                _columns(options, engine.spec),
            )  # fmt: skip
    stream.report_oddities(resolved.max_tokens)
    return _summary(engine.spec, runner.totals, dataset, started)


def _looked_at(options: EmbedOptions, say: Say) -> tuple[Manifest, Inputs, Scan]:
    """What can be told before a model is loaded; raises InputError for what cannot be run."""
    check_readable(options.inputs)
    manifest = manifests.read(options.artifact, check_files=False)  # before files that may be large
    for layer in options.layers:
        check_layer(layer, manifest.layers)
    inputs = Inputs(options.inputs, options.columns)
    found = scan(options.inputs, options.records, options.columns)
    found.check(options.skip)
    for count, what in (
        (found.num_cut, "their ends are cut off"),
        (found.num_in_windows, "they are run in windows"),
    ):
        if count:
            most = options.records.max_length
            say(f"{count:,} proteins are longer than {most:,} residues: {what}")
    if found.num_long:
        say(
            f"{found.num_long:,} proteins are longer than {TRAINED_ON:,} residues, which ESM-2 was "
            "trained on: --max-length and --long say what becomes of them"
        )
    return manifest, inputs, found


def _kept(
    options: EmbedOptions, manifest: Manifest, spec: EngineSpec, newest: int | None, warn: Say
) -> AbstractContextManager[VectorCache | None]:
    if options.cache is None:
        return nullcontext()
    return VectorCache(
        Path(options.cache), manifest, spec, _vectors(options, spec), tf32=options.tf32,
        newest=newest, warn=warn,
    )  # fmt: skip


def _runner(
    options: EmbedOptions, engine: Engine, budget: int, reject: Callable[[Rejection], None],
    kept: VectorCache | None,
) -> AsyncInferenceRunner:  # fmt: skip

    vectors = _vectors(options, engine.spec)
    return AsyncInferenceRunner(
        engine, budget, vectors.pools[0], vectors.layers[0], **asdict(options.records),
        on_rejected=strictly(options.skip, reject), kept=kept,
        of_pack=vectors.of_pack(engine) if vectors.are_several else None,
    )  # fmt: skip


def tell_of_the_longest(found: Scan, manifest: Manifest, spec: EngineSpec, say: Say) -> None:
    """What it may take, where that is much."""
    shape = manifest.architecture
    keeps_scores = spec.attention == "standard"
    needed = memory_of_longest(found.longest, shape.embed_dim, shape.num_heads, keeps_scores)
    if needed < LEAST_TOLD:
        return
    told = f"the longest protein has {found.longest:,} tokens: it takes up to {needed / 1e9:.1f} GB"
    free = usable_memory() if spec.device == "cpu" else None
    if free is not None and needed > free:
        told += f", and {free / 1e9:.1f} GB are free. --max-length and --long make it shorter"
    say(told)


def introduce(spec: EngineSpec, say: Say, warn: Say) -> None:
    """Says which engine runs."""
    reason = f" ({spec.attention_reason})" if spec.attention_reason else ""
    say(
        f"{spec.artifact}: {spec.format} ({spec.library}) on {spec.device}, {spec.dtype}, "
        f"attention: {spec.attention}{reason}"
    )
    if spec.synthetic:
        warn("this artifact's weights are random: its embeddings mean nothing")


def _total(found: Scan) -> int | None:
    return found.num_tokens if found.is_whole else None


def _metadata(options: EmbedOptions, engine: Engine) -> dict[str, str]:
    spec = engine.spec
    return {
        "artifact": spec.artifact, "engine": spec.format, "pool": ",".join(options.pools),
        "layer": ",".join(map(str, _vectors(options, spec).layers)),
    }  # fmt: skip


def _columns(options: EmbedOptions, spec: EngineSpec) -> Columns:
    return Columns(options.added, _vectors(options, spec).names)


def _vectors(options: EmbedOptions, spec: EngineSpec) -> Vectors:
    return Vectors(options.layers or spec.layers[-1:], options.pools)


# --- datasets -----------------------------------------------------------------------------------


def _run(options: EmbedOptions, manifest: Manifest, found: Scan) -> Run:
    given = asdict(options)
    records = given.pop("records")
    columns = given.pop("columns") or {"sequence": None, "id": None}
    # Another cache gives other last bits at most.
    for name in ("artifact", "inputs", "cache"):
        del given[name]
    given["device"] = kind_of(options.device)
    given["pool"] = ",".join(given.pop("pools"))
    given["layer"] = ",".join(map(str, given.pop("layers"))) or None
    given["with"] = ",".join(given.pop("added")) or None
    given["on_error"] = "skip" if given.pop("skip") else "stop"
    # Which cluster, and how large, may change from run to run.
    del given["ray_actors"]
    if given.pop("ray") is not None:
        given["ray"] = True
    return Run(
        schema_version=SCHEMA_VERSION,
        artifact=manifest.name,
        manifest_sha256=manifest.manifest_sha256,
        inputs=[input_of(path) for path in options.inputs],
        options={
            **given,
            **records,
            **{f"{name}_column": column and printable(column) for name, column in columns.items()},
        },  # fmt: skip
        proteins=found.num_proteins if found.is_whole else None,
        tokens=_total(found),
    )


def input_of(path: str) -> Input:
    """What a run keeps of an input."""
    if not is_regular(path):
        return Input(printable(path), None, None)
    size = Path(path).stat().st_size
    return Input(printable(path), size, sha256(Path(path), 0, size))


def _summary(spec: EngineSpec | None, totals: Totals, dataset: Dataset, started: float) -> Summary:
    return Summary(
        spec=spec,
        totals=totals,
        proteins=dataset.proteins,
        tokens=dataset.tokens,
        rejected=dataset.num_rejected,
        rejected_path=dataset.rejected_path,
        seconds=time.perf_counter() - started,
        bytes=dataset.bytes,
    )
