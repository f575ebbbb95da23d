"""What ``esm2-run predict`` does: files of proteins in, a table of predictions out."""

import time
from dataclasses import dataclass
from pathlib import Path

from runtime import manifest as manifests
from runtime.attention import Attention
from runtime.concurrency import budget_of, packing_for
from runtime.describe import MOST_LABELS
from runtime.device import default_max_tokens
from runtime.embed_stream import Say, Stream, strictly, unless_empty
from runtime.engine import EngineSpec
from runtime.loading import load
from runtime.predict.scores import head_of
from runtime.predict.stream import predicting_runner, prediction_of
from runtime.predict.table import check_table, opened_table
from runtime.progress import with_progress
from runtime.readers.fasta import check_readable
from runtime.readers.inputs import Inputs
from runtime.readers.records import RecordOptions
from runtime.readers.scan import scan
from runtime.runner import Totals
from runtime.writers.rejected_file import rejected_file


@dataclass(frozen=True)
class PredictOptions:
    """What the command was asked for; None where nothing was said.

    Attributes:
        artifact, inputs, output: the folder, the files, and the table.
        engine, device, attention, threads, concurrency: as in ``runtime.load``.
        max_tokens: budget of a pack.
        skip: leave records out that cannot be run.
        records: what is taken beyond ESM-2's alphabet, and what becomes of long proteins.
    """

    artifact: Path
    inputs: tuple[str, ...]
    output: Path
    engine: str
    device: str
    attention: Attention | None
    threads: int | None
    concurrency: int | None
    max_tokens: int | None
    skip: bool
    records: RecordOptions


@dataclass(frozen=True)
class Predicted:
    """What was done.

    Attributes:
        spec: of the engine.
        totals: of the runner.
        rows: of the table.
        rejected: records that were left out.
        rejected_path: where they are listed.
        seconds: that it took.
    """

    spec: EngineSpec
    totals: Totals
    rows: int
    rejected: int
    rejected_path: Path
    seconds: float


def predict(options: PredictOptions, say: Say, warn: Say) -> Predicted:
    """Writes the table, which appears when it is whole.

    Args:
        options: what to do.
        say: receives what is to be told.
        warn: receives what is odd.

    Raises:
        Esm2Error: one of its subclasses; nothing is written.
    """
    started = time.perf_counter()
    manifest = manifests.read(options.artifact, check_files=False)
    head = head_of(manifest)
    check_table(options.output, head)
    check_readable(options.inputs)
    found = scan(options.inputs, options.records)
    found.check(options.skip)
    packing = packing_for(
        found, manifest.architecture.embed_dim, options.max_tokens or default_max_tokens("cpu"),
        options.threads, options.concurrency,
    )  # fmt: skip
    with (
        load(
            options.artifact, options.engine, options.device, options.attention,
            threads=options.threads, concurrency=packing.concurrency,
        ) as engine,
        rejected_file(options.output, len(options.inputs) > 1) as rejected,
    ):  # fmt: skip
        spec = engine.spec
        say(
            f"{spec.artifact}: {spec.format} ({spec.library}) on {spec.device}, {spec.dtype}; "
            f"{head.kind}: {', '.join(head.labels[:MOST_LABELS])}"
            f"{', ...' if len(head.labels) > MOST_LABELS else ''}"
        )
        if spec.synthetic:
            warn("this artifact's weights are random: its predictions mean nothing")
        budget = budget_of(packing, engine.concurrency, spec.device, options.max_tokens)
        runner = predicting_runner(
            engine, head, budget, options.records, strictly(options.skip, rejected.add)
        )
        stream = Stream(Inputs(options.inputs, None), runner, None, warn)
        total = found.num_tokens if found.is_whole else None
        results = with_progress(stream.embeddings(0), runner.totals, total, say)
        metadata = {"artifact": spec.artifact, "engine": spec.format, "head": head.kind}
        with opened_table(options.output, head, options.records, metadata) as table:
            for each in unless_empty(results, runner.totals, rejected):
                table.add(prediction_of(each, head), each.record)
    stream.report_oddities(budget, "a head that reads their mean gives none")
    return Predicted(
        spec=spec,
        totals=runner.totals,
        rows=table.rows,
        rejected=rejected.count,
        rejected_path=rejected.path,
        seconds=time.perf_counter() - started,
    )
