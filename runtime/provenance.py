"""``provenance.json``: what an artifact was built from, by what; and ``sbom.cdx.json``, with what.

An in-toto statement (v1) with a SLSA provenance predicate (v1) over every file but the manifest,
which lists it. Sources: in-toto attestation framework v1, "statement.md"; SLSA v1.1,
"provenance.md".
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from runtime.manifest_schema import Manifest
from runtime.trust.bundle import STATEMENT_TYPE, Subject

FILE_NAME = "provenance.json"
SBOM = "sbom.cdx.json"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
# As it is named among the dependencies.
EXPORTER = "esm2-engines"
# Both have a few kilobytes for each package at most.
MAX_BYTES = 16 << 20


class Dependency(msgspec.Struct, frozen=True, omit_defaults=True):
    """A resource that the build read (in-toto's ``ResourceDescriptor``)."""

    name: str
    digest: dict[str, str] = {}
    annotations: dict[str, Any] = {}


class BuildDefinition(msgspec.Struct, frozen=True, rename="camel"):
    """What would be built again.

    Attributes:
        build_type: how the parameters are meant.
        external_parameters: what the user asked for.
        internal_parameters: of the machine: compiler, Python, kind of processor.
        resolved_dependencies: the weights, then the exporter itself.
    """

    build_type: str
    external_parameters: dict[str, Any]
    internal_parameters: dict[str, str]
    resolved_dependencies: list[Dependency]


class Builder(msgspec.Struct, frozen=True):
    """Who built; nothing but a signature vouches for it."""

    id: str
    version: dict[str, str]


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """When, in UTC."""

    started_on: str


class RunDetails(msgspec.Struct, frozen=True):
    """Of this build."""

    builder: Builder
    metadata: Metadata


class Predicate(msgspec.Struct, frozen=True, rename="camel"):
    """SLSA's."""

    build_definition: BuildDefinition
    run_details: RunDetails


class Statement(msgspec.Struct, frozen=True, rename="camel"):
    """In-toto's."""

    type: str = msgspec.field(name="_type")
    subject: list[Subject]
    predicate_type: str
    predicate: Predicate


class _Bom(msgspec.Struct):
    components: list[Any] = []


def read(folder: Path, manifest: Manifest) -> Statement | None:
    """How an artifact was built; None where it does not say.

    Args:
        folder: the artifact.
        manifest: of it, with which its files were compared.

    Raises:
        ValueError: the file is no such statement.
        OSError: it cannot be read.
    """
    if FILE_NAME not in manifest.files:
        return None
    statement = msgspec.json.decode(_bytes(folder / FILE_NAME), type=Statement)
    if (statement.type, statement.predicate_type) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise ValueError(f"it is a {statement.predicate_type}, expected {PREDICATE_TYPE}")
    if not statement.predicate.build_definition.resolved_dependencies:
        raise ValueError("it names no source")
    return statement


def describe(folder: Path, manifest: Manifest) -> Iterator[str]:
    """For ``esm2-run info``; arguments as of ``read``."""
    try:
        if (statement := read(folder, manifest)) is None:
            yield "  provenance    none: the artifact does not say how it was built"
            return
        packages = len(msgspec.json.decode(_bytes(folder / SBOM), type=_Bom).components)
    except (ValueError, OSError, RecursionError) as error:
        yield f"  provenance    cannot be read: {error}"
        return
    details = statement.predicate.run_details
    source, *others = statement.predicate.build_definition.resolved_dependencies
    digest = source.digest.get("sha256")
    yield (
        f"  provenance    {details.metadata.started_on} from {source.name}"
        f"{f', SHA-256 {digest[:12]}' if digest else ''}; {packages} packages in {SBOM}"
    )
    exporter = next((each for each in others if each.name == EXPORTER), None)
    commit = exporter.digest.get("gitCommit") if exporter else None
    changed = ", changed" if exporter and exporter.annotations.get("dirty") else ""
    at = f"commit {commit[:12]}{changed}" if commit else "commit not known"
    yield f"                by {EXPORTER} {details.builder.version.get(EXPORTER)}, {at}"


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_BYTES:,} bytes")
    return data
