"""Runs a job into one file, or into a folder that survives its run.

The data's path: records -> runner -> progress -> writer. What a job is of, ``jobs`` says.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.dataset.folder import opened
from runtime.dataset.records import SCHEMA_VERSION, Run
from runtime.device import kind_of
from runtime.embed_engine import loaded
from runtime.embed_files import Summary, input_of, introduce, tell_of_the_longest
from runtime.embed_options import EmbedOptions
from runtime.embed_stream import Say, unless_empty
from runtime.engine import Engine, EngineSpec
from runtime.manifest_schema import Manifest
from runtime.progress import with_progress
from runtime.readers.records import Record, Rejection
from runtime.readers.scan import Scan
from runtime.runner import AsyncInferenceRunner, Embedding, Totals
from runtime.writers import write_embeddings
from runtime.writers.columns import Columns
from runtime.writers.rejected_file import rejected_file
from runtime.writers.writing import Formats

Reject = Callable[[Rejection], None]


@dataclass(frozen=True)
class Job:
    """What a command runs, and what its output holds.

    Attributes:
        options: the engine's, and files that are read.
        manifest: of the artifact.
        found: what is run: masked copies, where there are any.
        records: to run, from a row on.
        num_records, num_tokens: of all of them, before they are masked.
        what: they are, in the plural.
        runner: for an engine and a budget; rejections go to the last argument.
        columns: of the output.
        formats: what one file may be.
        said: what the numbers depend on besides, for the output and for who goes on with it.
    """

    options: EmbedOptions
    manifest: Manifest
    found: Scan
    records: Callable[[int], Iterator[Record]]
    num_records: int | None
    num_tokens: int | None
    what: str
    runner: Callable[[Engine, int, Reject], AsyncInferenceRunner]
    columns: Columns
    formats: Formats
    said: dict[str, Any]


def to_file(
    job: Job, output: Path, say: Say, warn: Say,
    seen: Callable[[Iterable[Embedding]], Iterable[Embedding]] = iter,
) -> Summary:  # fmt: skip
    """Writes one file, which appears when it is whole.

    Args:
        job: to run.
        output: ends in one of ``job.formats``.
        say: receives what is to be told.
        warn: receives what is odd.
        seen: sees what is written, and gives it on.
    """
    started = time.perf_counter()
    with (
        loaded(job.options, job.manifest, job.found, None, say) as (engine, resolved),
        rejected_file(output, False) as rejected,
    ):
        runner = job.runner(engine, resolved.max_tokens, rejected.add)
        _introduce(job, engine.spec, say, warn)
        found = with_progress(
            runner.run(job.records(0)), runner.totals, job.num_tokens, say, what=job.what
        )
        found = unless_empty(seen(found), runner.totals, rejected)
        write_embeddings(output, found, _metadata(job, engine.spec), job.columns, job.formats)
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


def to_folder(
    job: Job, output: Path, resume: bool, part_bytes: int, say: Say, warn: Say
) -> Summary:
    """Writes a folder of Parquet files, or goes on with one; see ``embed_files.embed_dataset``."""
    started = time.perf_counter()
    run = _run(job)
    spec, totals = None, Totals()
    with opened(output, run, resume) as dataset:
        if not dataset.is_finished:
            before = dataset.before.resolved if dataset.before else None
            if before:
                say(f"{output}: goes on behind {dataset.proteins:,} {job.what}")
            with loaded(job.options, job.manifest, job.found, before, say) as (engine, resolved):
                dataset.begin(run, resolved)
                runner = job.runner(engine, resolved.max_tokens, dataset.reject)
                spec, totals = engine.spec, runner.totals
                _introduce(job, spec, say, warn)
                first = dataset.next_row
                found = with_progress(
                    runner.run(job.records(first), first), totals, job.num_tokens, say,
                    dataset.tokens, job.what,
                )  # fmt: skip
                found = unless_empty(found, totals, dataset, dataset.proteins)
                dataset.write(
                    found, runner.window_ends, _metadata(job, spec), part_bytes, job.columns
                )
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


def _introduce(job: Job, spec: EngineSpec, say: Say, warn: Say) -> None:
    introduce(spec, say, warn)
    tell_of_the_longest(job.found, job.manifest, spec, say)


def _metadata(job: Job, spec: EngineSpec) -> dict[str, str]:
    return {
        "artifact": spec.artifact, "engine": spec.format,
        **{name: str(value) for name, value in job.said.items()},
    }  # fmt: skip


def _run(job: Job) -> Run:
    options = job.options
    return Run(
        schema_version=SCHEMA_VERSION,
        artifact=job.manifest.name,
        manifest_sha256=job.manifest.manifest_sha256,
        inputs=[input_of(path) for path in options.inputs],
        options={
            "engine": options.engine,
            "device": kind_of(options.device),
            "attention": options.attention,
            "threads": options.threads,
            "concurrency": options.concurrency,
            "max_tokens": options.max_tokens,
            "on_error": "skip" if options.skip else "stop",
            **asdict(options.records),
            **job.said,
            # Which cluster, and how large, may change from run to run.
            **({"ray": True} if options.ray is not None else {}),
        },
        proteins=job.num_records,
        tokens=job.num_tokens,
        what=job.what,
    )
