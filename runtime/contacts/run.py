"""What ``esm2-run contacts`` does: files of proteins in, maps or the likeliest pairs out."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime import manifest as manifests
from runtime.attention import Attention
from runtime.concurrency import budget_of, packing_for
from runtime.contacts.outputs import Pairs, check_contacts_output, opened_output
from runtime.contacts.stream import check_contacts, contacts_runner
from runtime.device import default_max_tokens
from runtime.embed_files import introduce
from runtime.embed_stream import Say, Stream, strictly, unless_empty
from runtime.extract.labels import FileNames
from runtime.loading import load
from runtime.pairs import as_map
from runtime.progress import with_progress
from runtime.readers.fasta import check_readable
from runtime.readers.inputs import Inputs
from runtime.readers.records import RecordOptions
from runtime.readers.scan import scan
from runtime.runner import Totals
from runtime.writers.rejected_file import rejected_file
from runtime.writers.writing import naming_errors


@dataclass(frozen=True)
class ContactsOptions:
    """What the command was asked for; None where nothing was said.

    Attributes:
        artifact, inputs, output: the folder, the files, and the file of contacts.
        pairs: for a table.
        plot: a folder of pictures.
        engine, device, attention, threads, concurrency: as in ``runtime.load``.
        max_tokens: budget of a pack.
        skip: leave records out that cannot be run.
        records: what is taken beyond ESM-2's alphabet, and what becomes of long proteins.
    """

    artifact: Path
    inputs: tuple[str, ...]
    output: Path
    pairs: Pairs | None
    plot: Path | None
    engine: str
    device: str
    attention: Attention | None
    threads: int | None
    concurrency: int | None
    max_tokens: int | None
    skip: bool
    records: RecordOptions


@dataclass(frozen=True)
class Found:
    """What was done.

    Attributes:
        totals: of the runner.
        rejected: records that were left out.
        rejected_path: where they are listed.
        seconds: that it took.
    """

    totals: Totals
    rejected: int
    rejected_path: Path
    seconds: float


def contacts(options: ContactsOptions, say: Say, warn: Say) -> Found:
    """Writes the file, which appears when it is whole.

    Args:
        options: what to do.
        say: receives what is to be told.
        warn: receives what is odd.

    Raises:
        Esm2Error: one of its subclasses; nothing is written.
    """
    started = time.perf_counter()
    manifest = manifests.read(options.artifact, check_files=False)
    check_contacts(manifest)
    check_contacts_output(options.output, options.pairs)
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
        introduce(spec, say, warn)
        budget = budget_of(packing, engine.concurrency, spec.device, options.max_tokens)
        runner = contacts_runner(
            engine, budget, options.records, strictly(options.skip, rejected.add)
        )
        stream = Stream(Inputs(options.inputs, None), runner, None, warn)
        total = found.num_tokens if found.is_whole else None
        results = with_progress(stream.embeddings(0), runner.totals, total, say)
        metadata = {"artifact": spec.artifact, "engine": spec.format}
        pictures = _Pictures(options.plot)
        with opened_output(options.output, options.pairs or Pairs(), metadata) as output:
            for each in unless_empty(results, runner.totals, rejected):
                whole = as_map(each.values)
                output.add(each.id, whole)
                pictures.add(each.id, whole)
    stream.report_oddities(budget, "they have no contacts")
    return Found(
        totals=runner.totals,
        rejected=rejected.count,
        rejected_path=rejected.path,
        seconds=time.perf_counter() - started,
    )


class _Pictures:
    """One a protein, named by its id as a file can be."""

    def __init__(self, folder: Path | None):
        self._folder = folder
        if folder is not None:
            with naming_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                self._names = FileNames.in_folder(folder)
        self._seen: dict[str, int] = {}

    def add(self, name: str, contacts: NDArray[np.floating]) -> None:
        if self._folder is None or not len(contacts):
            return
        from runtime.contacts.plot import draw

        self._seen[name] = count = self._seen.get(name, 0) + 1
        file = self._names.of(name if count == 1 else f"{name} ({count})", ".png")
        with naming_errors(self._folder):
            draw(self._folder / file, name, contacts)
