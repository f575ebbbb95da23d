"""What commands share that run files of proteins and take something of each: scan to results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime.embed_engine import loaded
from runtime.embed_options import EmbedOptions
from runtime.embed_stream import Say, Stream, strictly, unless_empty
from runtime.engine import Engine, EngineSpec
from runtime.manifest_schema import Manifest
from runtime.progress import with_progress
from runtime.readers.fasta import check_readable
from runtime.readers.inputs import Inputs
from runtime.readers.records import Rejection
from runtime.readers.scan import scan
from runtime.runner import AsyncInferenceRunner, Embedding, Totals
from runtime.writers.rejected_file import RejectedFile, rejected_file

MakeRunner = Callable[[Engine, int, Callable[[Rejection], None]], AsyncInferenceRunner]


@dataclass(frozen=True)
class Proteins:
    """An engine at work.

    Attributes:
        spec: of the engine.
        results: of the proteins, in the order of the input; raises where there are none.
        totals: of the runner.
        rejected: where records went that were left out.
    """

    spec: EngineSpec
    results: Iterator[Embedding]
    totals: Totals
    rejected: RejectedFile


@contextmanager
def running(
    options: EmbedOptions, manifest: Manifest, output: Path, make: MakeRunner, empty: str,
    say: Say, warn: Say,
) -> Iterator[Proteins]:  # fmt: skip
    """An engine with the proteins of files; what was odd is said when the block ends.

    Args:
        options: what to run.
        manifest: of its artifact.
        output: beside which rejected records are listed.
        make: a runner of an engine, a budget, and what takes rejections.
        empty: what becomes of records without residues.
        say: receives what is to be told.
        warn: receives what is odd.
    """
    check_readable(options.inputs)
    found = scan(options.inputs, options.records)
    found.check(options.skip)
    with (
        loaded(options, manifest, found, None, say) as (engine, resolved),
        rejected_file(output, len(options.inputs) > 1) as rejected,
    ):
        budget = resolved.max_tokens
        runner = make(engine, budget, strictly(options.skip, rejected.add))
        stream = Stream(Inputs(options.inputs, None), runner, None, warn)
        total = found.num_tokens if found.is_whole else None
        results = with_progress(stream.embeddings(0), runner.totals, total, say)
        results = unless_empty(results, runner.totals, rejected)
        yield Proteins(engine.spec, results, runner.totals, rejected)
    stream.report_oddities(budget, empty)
