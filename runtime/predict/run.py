"""What ``esm2-run predict`` does: files of proteins in, a table of predictions out."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime import manifest as manifests
from runtime.describe import MOST_LABELS
from runtime.embed_options import EmbedOptions
from runtime.embed_stream import Say
from runtime.engine import Engine, EngineSpec
from runtime.predict.scores import head_of
from runtime.predict.stream import predicting_runner, prediction_of
from runtime.predict.table import check_table, opened_table
from runtime.protein_stream import running
from runtime.readers.records import Rejection
from runtime.runner import AsyncInferenceRunner, Totals


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


def predict(options: EmbedOptions, output: Path, say: Say, warn: Say) -> Predicted:
    """Writes the table, which appears when it is whole.

    Args:
        options: what to run.
        output: the table.
        say: receives what is to be told.
        warn: receives what is odd.

    Raises:
        Esm2Error: one of its subclasses; nothing is written.
    """
    started = time.perf_counter()
    manifest = manifests.read(options.artifact, check_files=False)
    head = head_of(manifest)
    check_table(output, head)

    def runner(
        engine: Engine, budget: int, reject: Callable[[Rejection], None]
    ) -> AsyncInferenceRunner:
        return predicting_runner(engine, head, budget, options.records, reject)

    empty = "a head that reads their mean gives none"
    with running(options, manifest, output, runner, empty, say, warn) as proteins:
        spec = proteins.spec
        say(
            f"{spec.artifact}: {spec.format} ({spec.library}) on {spec.device}, {spec.dtype}; "
            f"{head.kind}: {', '.join(head.labels[:MOST_LABELS])}"
            f"{', ...' if len(head.labels) > MOST_LABELS else ''}"
        )
        if spec.synthetic:
            warn("this artifact's weights are random: its predictions mean nothing")
        metadata = {"artifact": spec.artifact, "engine": spec.format, "head": head.kind}
        with opened_table(output, head, options.records, metadata) as table:
            for each in proteins.results:
                table.add(prediction_of(each, head), each.record)
    return Predicted(
        spec=spec,
        totals=proteins.totals,
        rows=table.rows,
        rejected=proteins.rejected.count,
        rejected_path=proteins.rejected.path,
        seconds=time.perf_counter() - started,
    )
