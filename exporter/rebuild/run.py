"""An artifact built again from what its provenance says."""

import os
import time
from calendar import timegm
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from exporter.build import build
from exporter.errors import CheckpointError, ExportError
from exporter.parity.truth.cache import Cache
from exporter.provenance import materials
from exporter.provenance.record import Record, options_of
from exporter.provenance.statement import BUILD_TYPE, EPOCH_VARIABLE, TIME_FORMAT
from exporter.rebuild.compare import Outcome, compare, differences
from exporter.weights.calibration import Calibration
from runtime import manifest as manifests
from runtime import provenance
from runtime.manifest_schema import Manifest
from runtime.provenance import Statement
from runtime.staging import temporary_folder
from runtime.user_cache import VARIABLE as CACHE_VARIABLE
from runtime.user_cache import default_folder


def rebuild(
    folder: Path,
    say: Callable[[str], None],
    *,
    checkpoint: str | None = None,
    probe: str | None = None,
    calibration: Calibration | None = None,
    afresh: bool = True,
) -> tuple[list[Outcome], list[str]]:
    """Builds an artifact again, into a temporary folder, and compares.

    Args:
        folder: the artifact.
        say: receives one line for each step.
        checkpoint, probe, calibration: what it was built from, where it was.
        afresh: compile the native ops, too, which a build takes from its cache.

    Returns:
        Each file of both, by name, and in what the two builds were not alike, in sentences.

    Raises:
        ArtifactError: it is damaged.
        ExportError: it does not say how it was built, or what is given is not what it was built
            from, or it cannot be built.
    """
    manifest = manifests.read(folder)
    statement, record = _recorded(folder, manifest)
    source = _source(folder, record, checkpoint, probe, calibration)
    answers = Cache(default_folder())
    with temporary_folder("rebuild") as place, _environment(statement, place if afresh else None):
        options = options_of(record, place / manifest.name, source, probe, calibration)
        _check_sources(statement, materials.weights(options.source, manifest.weights), folder)
        again, _ = build(options, say, answers)
        return compare(folder, again), differences(folder, again)


def _recorded(folder: Path, manifest: Manifest) -> tuple[Statement, Record]:
    try:
        statement = provenance.read(folder, manifest)
        if statement is None:
            raise ExportError(
                f"{folder} holds no {provenance.FILE_NAME}: it was built by an esm2-export that "
                "did not write one, and cannot be built again from what it says"
            )
        definition = statement.predicate.build_definition
        if definition.build_type != BUILD_TYPE:
            raise ValueError(f"build type {definition.build_type!r}, expected {BUILD_TYPE!r}")
        record = msgspec.convert(definition.external_parameters, Record)
        time.strptime(statement.predicate.run_details.metadata.started_on, TIME_FORMAT)
    except ValueError as error:
        raise ExportError(f"{folder / provenance.FILE_NAME} cannot be read: {error}") from None
    if record.kind == "artifact" or Path(manifest.name).name != manifest.name:
        raise ExportError(f"{folder / provenance.FILE_NAME} is refused: no build wrote it")
    return statement, record


def _source(
    folder: Path,
    record: Record,
    checkpoint: str | None,
    probe: str | None,
    calibration: Calibration | None,
) -> str:
    """The name or path of the weights.

    Raises:
        ExportError: something is missing, or given and not of this artifact.
    """
    for option, recorded, given in (
        ("--checkpoint", record.source if record.kind == "checkpoint" else None, checkpoint),
        ("--probe", record.probe, probe),
        ("--calibration", record.calibration, calibration.proteins if calibration else None),
    ):
        if recorded and (given is None or recorded not in (given, Path(given).name)):
            raise ExportError(f"{folder} was built from {recorded}: give it with {option}")
        if given and not recorded:
            raise ExportError(f"{folder} was not built with {option}: leave it out")
    return checkpoint or record.source


def _check_sources(statement: Statement, given: list[provenance.Dependency], folder: Path) -> None:
    recorded = statement.predicate.build_definition.resolved_dependencies[:-1]
    for one, other in zip(recorded, given, strict=False):
        for kind, digest in one.digest.items():
            if other.digest.get(kind) != digest:
                raise CheckpointError(
                    f"{other.name} is not the {one.name} that {folder} was built from: {kind} "
                    f"{other.digest.get(kind, 'none')[:12]}, expected {digest[:12]}"
                )


@contextmanager
def _environment(statement: Statement, cache: Path | None) -> Iterator[None]:
    """Inside, a build writes the recorded time, and has an empty cache if ``cache`` is a place."""
    started = time.strptime(statement.predicate.run_details.metadata.started_on, TIME_FORMAT)
    kept = {name: os.environ.get(name) for name in (EPOCH_VARIABLE, CACHE_VARIABLE)}
    os.environ[EPOCH_VARIABLE] = str(timegm(started))
    if cache is not None:
        os.environ[CACHE_VARIABLE] = str(cache / "cache")
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
