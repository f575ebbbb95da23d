"""What ``esm2-run extract`` does: a FASTA file in, a folder of .pt files out.

The data's path: labels and scan -> packing -> engine -> (records -> runner -> progress) -> files.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from runtime import manifest as manifests
from runtime.concurrency import budget_of, packing_for
from runtime.device import default_max_tokens, least_max_tokens
from runtime.embed_stream import Say, strictly
from runtime.engine import Engine, EngineSpec
from runtime.errors import InputError
from runtime.extract.labels import FileNames, check_labels, label_of
from runtime.extract.pt_files import PtFiles, check_torch
from runtime.extract.wanted import Wanted, wanted_of
from runtime.loading import load
from runtime.progress import with_progress
from runtime.readers.fasta import check_readable, is_regular, open_input
from runtime.readers.inputs import Inputs
from runtime.readers.nucleotides import watch_for_nucleotides
from runtime.readers.records import RecordOptions, Rejection
from runtime.readers.scan import scan
from runtime.runner import AsyncInferenceRunner, Totals
from runtime.staging import staging
from runtime.writers.rejected_file import rejected_file
from runtime.writers.writing import naming_errors


@dataclass(frozen=True)
class ExtractOptions:
    """What the command was asked for; None where nothing was said.

    Attributes:
        artifact: the folder.
        fasta: the file; a pipe is copied first, for labels are looked at before the run.
        output: the folder of the files.
        repr_layers, include: as in fair-esm's script.
        max_tokens: budget of a pack.
        engine, device, threads, concurrency: as in ``runtime.load``.
        skip: leave records out that cannot be run.
        records: what is taken beyond ESM-2's alphabet, and where proteins are cut.
    """

    artifact: Path
    fasta: str
    output: Path
    repr_layers: Sequence[int]
    include: Sequence[str]
    max_tokens: int | None
    engine: str
    device: str
    threads: int | None
    concurrency: int | None
    skip: bool
    records: RecordOptions


@dataclass(frozen=True)
class Extracted:
    """What was done.

    Attributes:
        spec: of the engine.
        totals: of the runner.
        files: that were written.
        bytes: in them.
        rejected: records that were left out.
        rejected_path: where they are listed.
        seconds: that it took.
    """

    spec: EngineSpec
    totals: Totals
    files: int
    bytes: int
    rejected: int
    rejected_path: Path
    seconds: float


def extract(options: ExtractOptions, say: Say, warn: Say) -> Extracted:
    """Writes a file for each protein; those of an earlier run are replaced.

    Args:
        options: what to do.
        say: receives what is to be told.
        warn: receives what is odd.

    Raises:
        Esm2Error: one of its subclasses; what was written before stays, each file whole.
    """
    started = time.perf_counter()
    check_torch()
    _check_artifact(options.artifact)
    manifest = manifests.read(options.artifact, check_files=False)
    wanted = wanted_of(manifest, options.repr_layers, options.include)
    check_readable([options.fasta])
    with _aside(options.output) as aside:
        fasta = _read_twice(options.fasta, aside)
        inputs = Inputs([fasta], None)
        found = scan([fasta], options.records)
        found.check(options.skip)
        names = FileNames.in_folder(aside)
        list_file = options.output / f"{_own_name(options.fasta)}.labels.tsv"
        _report_labels(inputs, names, aside, list_file, warn)
        if found.num_cut:
            say(f"{found.num_cut:,} proteins are cut to {options.records.max_length:,} residues")
        packing = packing_for(
            found, manifest.architecture.embed_dim, options.max_tokens or least_max_tokens("cpu"),
            options.threads, options.concurrency,
        )  # fmt: skip
        with (
            load(
                options.artifact, options.engine, options.device, threads=options.threads,
                concurrency=packing.concurrency,
            ) as engine,
            rejected_file(options.output / _own_name(options.fasta), False) as rejected,
        ):  # fmt: skip
            _introduce(engine.spec, say, warn)
            most = options.max_tokens or default_max_tokens(engine.spec)
            budget = budget_of(packing, engine.concurrency, engine.spec.device, most)
            runner = _runner(options, engine, budget, wanted, rejected.add)
            records = watch_for_nucleotides(inputs.records(0), warn)
            files = PtFiles(options.output, aside)
            for each in with_progress(runner.run(records), runner.totals, found.num_tokens, say):
                label = label_of(each.record)
                with naming_errors(
                    options.output, lambda: f"{files.count:,} files were written before, and stay"
                ):
                    result = wanted.result(label, each.values, each.num_tokens - 2)
                    files.write(names.of(label), result)
    if empty := len(runner.totals.without_residues):
        warn(f"{empty:,} records hold no residues: their means are NaN, as in fair-esm's script")
    return Extracted(
        spec=engine.spec,
        totals=runner.totals,
        files=files.count,
        bytes=files.bytes,
        rejected=rejected.count,
        rejected_path=rejected.path,
        seconds=time.perf_counter() - started,
    )


def _check_artifact(artifact: Path) -> None:
    """Names the command that builds an artifact from what fair-esm's script takes there."""
    if artifact.is_dir():
        return
    if artifact.suffix == ".pt":
        build = f"--checkpoint {artifact}"
    elif artifact.name.startswith("esm2_t") and artifact.name == str(artifact):
        build = f"--model {artifact}"
    else:
        return  # the manifest's own error says it
    raise InputError(
        f"{artifact} is what fair-esm's script takes, and this takes an artifact's folder. Build "
        f"it once with 'esm2-export build {build}', and give artifacts/{artifact.stem}"
    )


@contextmanager
def _aside(output: Path) -> Iterator[Path]:
    """A hidden folder in ``output`` for what is not whole; the next run removes a killed one's."""
    with ExitStack() as stack:
        with naming_errors(output):
            output.mkdir(parents=True, exist_ok=True)
            aside = stack.enter_context(staging(output / "extract"))
            aside.mkdir()
        yield aside


def _read_twice(fasta: str, aside: Path) -> str:
    if is_regular(fasta):
        return fasta
    copy = aside / "piped.fasta"
    with open_input(fasta) as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target)
    return str(copy)


def _own_name(fasta: str) -> str:
    """Of lists beside the files: runs of several FASTA files may share a folder."""
    return Path(fasta).name if is_regular(fasta) else "piped.fasta"


def _report_labels(
    inputs: Inputs, names: FileNames, aside: Path, list_file: Path, warn: Say
) -> None:
    listed = aside / "labels.tsv"
    changed = check_labels(partial(inputs.records, 0), names, listed)
    with naming_errors(list_file):
        if not changed.count:
            list_file.unlink(missing_ok=True)
            return
        listed.replace(list_file)
    warn(
        f"{changed.count:,} labels cannot name a file: {'; '.join(changed.examples)}"
        f"{'; ...' if changed.count > len(changed.examples) else ''}. All are in {list_file}"
    )


def _runner(
    options: ExtractOptions, engine: Engine, budget: int, wanted: Wanted,
    reject: Callable[[Rejection], None],
) -> AsyncInferenceRunner:  # fmt: skip
    return AsyncInferenceRunner(
        engine, budget, "none" if "per_tok" in wanted.include else "mean", wanted.layers[-1],
        **asdict(options.records), on_rejected=strictly(options.skip, reject),
        of_pack=partial(wanted.of_pack, engine), rows_of_token=len(wanted.layers),
    )  # fmt: skip


def _introduce(spec: EngineSpec, say: Say, warn: Say) -> None:
    say(f"{spec.artifact}: {spec.format} ({spec.library}) on {spec.device}, {spec.dtype}")
    if spec.synthetic:
        warn("this artifact's weights are random: its representations mean nothing")
