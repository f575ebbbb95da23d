"""``provenance.json``: an in-toto statement with a SLSA provenance predicate.

Its subjects are all files but the manifest, whose digest cannot be in a file that it lists.
"""

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from exporter.build_options import BuildOptions
from exporter.environment import version_of
from exporter.errors import ExportError
from exporter.formats.native import CompilerError, compiler_command, compiler_version
from exporter.provenance import materials
from exporter.provenance.record import record_of
from runtime.files import FileEntry, file_entry
from runtime.manifest_schema import WeightsOrigin
from runtime.provenance import (
    EXPORTER,
    FILE_NAME,
    PREDICATE_TYPE,
    BuildDefinition,
    Builder,
    Metadata,
    Predicate,
    RunDetails,
    Statement,
)
from runtime.trust.bundle import STATEMENT_TYPE, Subject

# Names, not addresses: docs/trust.md says what is meant.
BUILD_TYPE = "urn:esm2-engines:build:1"
BUILDER = "urn:esm2-engines:esm2-export"
# https://reproducible-builds.org/specs/source-date-epoch
EPOCH_VARIABLE = "SOURCE_DATE_EPOCH"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def now() -> str:
    """``SOURCE_DATE_EPOCH``, else the time, in UTC.

    Raises:
        ExportError: the variable is no number of seconds.
    """
    given = os.environ.get(EPOCH_VARIABLE)
    try:
        return time.strftime(TIME_FORMAT, time.gmtime(None if given is None else int(given)))
    except (ValueError, OverflowError, OSError):
        raise ExportError(
            f"{EPOCH_VARIABLE} is {given!r}, expected seconds since 1970, as 'date +%s' gives them"
        ) from None


def write(
    folder: Path,
    options: BuildOptions,
    origin: WeightsOrigin,
    files: Mapping[str, FileEntry],
    started: str,
) -> FileEntry:
    """Writes the file and gives its entry for the manifest.

    Args:
        folder: the artifact, with all its files but the manifest as they stay.
        options: it was built by.
        origin: of its weights.
        files: its subjects.
        started: from ``now``.
    """
    statement = Statement(
        type=STATEMENT_TYPE,
        subject=[Subject(name, {"sha256": entry.sha256}) for name, entry in files.items()],
        predicate_type=PREDICATE_TYPE,
        predicate=Predicate(
            BuildDefinition(
                BUILD_TYPE,
                msgspec.to_builtins(record_of(options)),
                _machine(),
                [*materials.weights(options.source, origin), materials.exporter()],
            ),
            RunDetails(
                Builder(BUILDER, {EXPORTER: version_of(EXPORTER) or "not installed"}),
                Metadata(started),
            ),
        ),
    )
    path = folder / FILE_NAME
    path.write_bytes(msgspec.json.format(msgspec.json.encode(statement), indent=1) + b"\n")
    return file_entry(path)


def _machine() -> dict[str, str]:
    """What engines are compiled with and for; the packages are in the SBOM."""
    try:
        compiler = compiler_version(compiler_command()).partition("\n")[0]
    except CompilerError:
        compiler = "none"
    return {
        "compiler": compiler,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
