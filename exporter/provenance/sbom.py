"""``sbom.cdx.json``: the packages that built an artifact, as CycloneDX.

No time, and a serial number that follows from what is in it: the same packages give the same bytes.
"""

import hashlib
import importlib.metadata
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path

import msgspec
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runtime.manifest_schema import WeightsOrigin
from runtime.provenance import EXPORTER, SBOM

# What pyproject.toml asks for, with its extra ``export``; flash-attn, flash-attn-3 and ONNX Runtime
# for GPUs are taken where they are installed.
ROOTS = (
    "backports.zstd", "click", "cyclonedx-python-lib", "fair-esm", "filelock", "flash-attn",
    "flash-attn-3", "huggingface-hub", "isal", "jinja2", "matplotlib", "msgspec", "numpy", "onnx",
    "onnx-ir", "onnxruntime", "onnxruntime-gpu", "onnxscript", "packaging", "safetensors", "torch",
    "tqdm",
)  # fmt: skip
OF_TARGET = {"tensorrt": ("cuda-bindings", "tensorrt", "tensorrt-rtx")}
OF_SOURCE = {"huggingface": ("peft", "transformers")}
# What installers add to a package's folder, each in its own way.
_INSTALLERS = {"INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json"}


@dataclass(frozen=True)
class Package:
    """An installed distribution.

    Attributes:
        name: canonical.
        version: of it.
        sha256: of what its RECORD lists (``record_sha256``); None where there is none.
        requires: names of other packages, installed or not.
    """

    name: str
    version: str
    sha256: str | None
    requires: frozenset[str]


def roots_of(targets: Iterable[str], origin: WeightsOrigin) -> list[str]:
    """What the exporter imports to build ``targets`` from weights of ``origin``."""
    more = [OF_TARGET.get(target, ()) for target in targets]
    return [*ROOTS, *OF_SOURCE.get(origin.kind, ()), *(name for names in more for name in names)]


def write(folder: Path, name: str, roots: Iterable[str]) -> None:
    """Writes the file.

    Args:
        folder: the artifact.
        name: of it.
        roots: the packages that the exporter imports; what they require is listed with them.
    """
    roots = [*roots]
    packages = installed(roots)
    components = {package.name: _component(package) for package in packages.values()}
    whole = Component(name=name, type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref=name)
    what = Property(name=f"{EXPORTER}:hashes", value="of RECORD")
    metadata = BomMetaData(component=whole, properties=[what])
    bom = Bom(components=components.values(), metadata=metadata)
    facts = msgspec.json.encode([name, [[p.name, p.version, p.sha256] for p in packages.values()]])
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, hashlib.sha256(facts).hexdigest())
    names = map(canonicalize_name, roots)
    bom.register_dependency(whole, [components[name] for name in names if name in components])
    for package in packages.values():
        needed = [components[other] for other in package.requires if other in components]
        bom.register_dependency(components[package.name], needed)
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    fields = msgspec.json.decode(text)
    del fields["metadata"]["timestamp"]
    (folder / SBOM).write_bytes(msgspec.json.format(msgspec.json.encode(fields), indent=1) + b"\n")


def installed(roots: Iterable[str]) -> dict[str, Package]:
    """``roots`` and all that they require, as far as they are installed; sorted by name."""
    found: dict[str, Package] = {}
    extras: dict[str, set[str]] = {}
    wanted = [Requirement(root) for root in roots]
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name in found and requirement.extras <= extras[name]:
            continue
        extras.setdefault(name, set()).update(requirement.extras)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        others = [*_requirements(distribution, extras[name])]
        requires = frozenset(canonicalize_name(other.name) for other in others)
        record = distribution.read_text("RECORD")
        sha256 = record_sha256(record) if record else None
        found[name] = Package(name, distribution.version, sha256, requires)
        wanted += others
    return dict(sorted(found.items()))


def record_sha256(record: str) -> str:
    """SHA-256 of the sorted lines of a RECORD that have a digest.

    Left out is what differs between two environments with one wheel: scripts, which name their
    Python and lie above the package's folder, and notes of the installer.
    """
    lines = sorted(
        line
        for line in record.splitlines()
        if ",sha256=" in line
        and not line.startswith(("..", "/"))
        and line.partition(",")[0].rpartition("/")[2] not in _INSTALLERS
    )
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def _requirements(distribution: Distribution, extras: set[str]) -> Iterator[Requirement]:
    for text in distribution.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def _component(package: Package) -> Component:
    purl = PackageURL("pypi", name=package.name, version=package.version)
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=package.sha256)] if package.sha256 else []
    return Component(
        name=package.name, version=package.version, purl=purl, bom_ref=str(purl), hashes=hashes
    )
