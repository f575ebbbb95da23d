"""Two builds of one artifact, file by file."""

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import msgspec

from exporter.parity.golden import FILE_NAME as GOLDEN
from exporter.parity.report.html import FILE_NAME as PARITY_PAGE
from exporter.parity.report.schema import FILE_NAME as PARITY
from runtime import manifest as manifests
from runtime.provenance import FILE_NAME as PROVENANCE
from runtime.provenance import SBOM
from runtime.trust.bundle import FILE_NAME as SIGNATURE

# What cannot be the same bytes twice, and why.
NEVER = {
    "tensorrt/*.plan": "TensorRT times kernels and takes the fastest",
    "model.cuda.pt2": "Inductor times kernels and takes the fastest",
}
MEASURED = {PARITY, PARITY_PAGE, GOLDEN}
HOLDS_DIGESTS = "holds digests of files that differ"


@dataclass(frozen=True)
class Outcome:
    """Of one file.

    Attributes:
        name: of it.
        same: byte for byte.
        reason: why it may differ, or why it was not compared; empty where it may not differ.
    """

    name: str
    same: bool
    reason: str = ""

    @property
    def is_accepted(self) -> bool:
        """Whether that is as it should be."""
        return self.same or bool(self.reason)


def compare(folder: Path, again: Path) -> list[Outcome]:
    """Every file of both, by name; what may differ is decided by what else differs.

    Args:
        folder: an artifact.
        again: another build of it.
    """
    before, after = (manifests.read(each, check_files=False).files for each in (folder, again))
    changed = {name for name in {**before, **after} if before.get(name) != after.get(name)}
    reasons = {name: why for name in changed if (why := _never(name))}
    measured = "measured of engines that differ" if reasons else ""
    if _processor(folder) != _processor(again):
        measured = "measured on another processor, or by other threads"
    if measured:
        reasons |= dict.fromkeys(MEASURED & changed, measured)
    if (folder / manifests.FILE_NAME).read_bytes() != (again / manifests.FILE_NAME).read_bytes():
        changed.add(manifests.FILE_NAME)
    for name in (PROVENANCE, manifests.FILE_NAME):  # the second lists the first
        if name in changed and _but_for(folder / name, reasons) == _but_for(again / name, reasons):
            reasons[name] = HOLDS_DIGESTS
    outcomes = [
        Outcome(name, name not in changed, reasons.get(name, ""))
        for name in sorted({*before, *after, manifests.FILE_NAME})
    ]
    if (folder / SIGNATURE).exists():
        outcomes.append(Outcome(SIGNATURE, False, "made with a key, not by the build"))
    return outcomes


def differences(folder: Path, again: Path) -> list[str]:
    """In what the two builds were not alike: commit, compiler, packages, processor."""
    one, other = (_facts(each) for each in (folder, again))
    return [
        f"{name}: {one.get(name, 'none')}, here {other.get(name, 'none')}"
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    ]


def _never(name: str) -> str:
    return next((why for pattern, why in NEVER.items() if fnmatch(name, pattern)), "")


def _but_for(path: Path, names: Collection[str]) -> Any:
    """A manifest or a provenance without what it says of these files."""
    fields = _json(path)
    if path.name == PROVENANCE:
        fields["subject"] = [each for each in fields["subject"] if each["name"] not in names]
        return fields
    fields["files"] = {name: entry for name, entry in fields["files"].items() if name not in names}
    measured = ["parity", "golden"] if MEASURED & {*names} else []
    return {k: v for k, v in fields.items() if k not in ["manifest_sha256", *measured]}


def _processor(folder: Path) -> str:
    environment = _json(folder / PARITY)["environment"]
    return "; ".join(str(environment.get(key)) for key in ("cpu", "threads", "instructions", "gpu"))


def _facts(folder: Path) -> dict[str, str]:
    definition = _json(folder / PROVENANCE)["predicate"]["buildDefinition"]
    exporter = definition["resolvedDependencies"][-1]
    changed = ["changed"] if exporter.get("annotations", {}).get("dirty") else []
    packages = {
        each["name"]: " ".join([each["version"], *(h["content"] for h in each.get("hashes", []))])
        for each in _json(folder / SBOM)["components"]
    }
    own = " ".join([*exporter.get("digest", {}).values(), *changed])
    machine = definition["internalParameters"]
    return {**machine, "processor": _processor(folder), exporter["name"]: own, **packages}


def _json(path: Path) -> Any:
    return msgspec.json.decode(path.read_bytes())
