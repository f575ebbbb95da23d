"""What ``esm2-run contacts`` does: files of proteins in, maps or the likeliest pairs out."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime import manifest as manifests
from runtime.contacts.outputs import Pairs, Repeated, check_contacts_output, opened_output
from runtime.contacts.stream import contacts_runner
from runtime.embed_files import introduce
from runtime.embed_options import EmbedOptions
from runtime.embed_stream import Say
from runtime.engine import Engine
from runtime.extract.labels import FileNames
from runtime.pairs import as_map, check_contacts
from runtime.protein_stream import running
from runtime.readers.records import Rejection
from runtime.runner import AsyncInferenceRunner, Totals
from runtime.writers.writing import naming_errors


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


def contacts(
    options: EmbedOptions, output: Path, pairs: Pairs | None, plot: Path | None, say: Say, warn: Say
) -> Found:
    """Writes the file, which appears when it is whole.

    Args:
        options: what to run.
        output: the file.
        pairs: for a table.
        plot: a folder of pictures.
        say: receives what is to be told.
        warn: receives what is odd.

    Raises:
        Esm2Error: one of its subclasses; nothing is written.
    """
    started = time.perf_counter()
    manifest = manifests.read(options.artifact, check_files=False)
    check_contacts(manifest)
    check_contacts_output(output, pairs)

    def runner(
        engine: Engine, budget: int, reject: Callable[[Rejection], None]
    ) -> AsyncInferenceRunner:
        return contacts_runner(engine, budget, options.records, reject)

    empty = "they have no contacts"
    with running(options, manifest, output, runner, empty, say, warn) as proteins:
        spec = proteins.spec
        introduce(spec, say, warn)
        metadata = {"artifact": spec.artifact, "engine": spec.format}
        pictures = _Pictures(plot)
        with opened_output(output, pairs or Pairs(), metadata) as file:
            for each in proteins.results:
                whole = as_map(each.values)
                file.add(each.id, whole)
                pictures.add(each.id, whole)
    return Found(
        totals=proteins.totals,
        rejected=proteins.rejected.count,
        rejected_path=proteins.rejected.path,
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
        self._repeated = Repeated()

    def add(self, name: str, contacts: NDArray[np.floating]) -> None:
        if self._folder is None or not len(contacts):
            return
        from runtime.contacts.plot import draw

        file = self._names.of(self._repeated.name_of(name), ".png")
        with naming_errors(self._folder):
            draw(self._folder / file, name, contacts)
