"""What a build read: the weights' files, and the exporter's own sources."""

import importlib.metadata
import subprocess
from pathlib import Path

from exporter.environment import version_of
from exporter.model.reference import WeightsSource
from exporter.model.sources.fair_esm import contact_file, model_file
from exporter.provenance.sbom import record_sha256
from runtime.files import sha256
from runtime.manifest_schema import WeightsOrigin
from runtime.provenance import EXPORTER, Dependency

# Of a folder that transformers or PEFT saved.
_SETTINGS = {".json", ".txt"}
_IN_FOLDERS = {".safetensors", ".bin", ".pt", *_SETTINGS}
_GIT_SECONDS = 30


def weights(source: WeightsSource, origin: WeightsOrigin) -> list[Dependency]:
    """The source, with the digest of its first file; then its other files, and a probe's.

    ``stateSha256`` is of the parameters, whatever they were stored in.
    """
    files = _files(source)
    digest = {"stateSha256": origin.state_sha256}
    if origin.revision:
        digest["gitCommit"] = origin.revision
    if files:
        digest["sha256"] = _sha256(files[0])
    others = [*files[1:], *([Path(source.probe.path)] if source.probe else [])]
    return [
        Dependency(origin.source, digest),
        *(Dependency(path.name, {"sha256": _sha256(path)}) for path in others),
    ]


def exporter() -> Dependency:
    """The exporter: its commit, and whether its files were changed since; else its wheel's RECORD.

    ``recordSha256`` is that of ``record_sha256``.
    """
    if found := commit_of(Path(__file__).parents[1]):
        commit, dirty = found
        return Dependency(EXPORTER, {"gitCommit": commit}, {"dirty": dirty})
    if version_of(EXPORTER) and (
        record := importlib.metadata.distribution(EXPORTER).read_text("RECORD")
    ):
        return Dependency(EXPORTER, {"recordSha256": record_sha256(record)})
    return Dependency(EXPORTER)


def commit_of(folder: Path) -> tuple[str, bool] | None:
    """The commit of a checkout's ``exporter``, and whether it or ``runtime`` was changed since.

    None without git, and where git does not know its files: in a virtual environment, the
    repository around it is another's.
    """
    if _git(folder, "ls-files", "--error-unmatch", "build.py") is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--", ".", "../runtime")
    return None if commit is None else (commit.strip(), changes != "")


def _files(source: WeightsSource) -> list[Path]:
    """Of the weights first; none of synthetic ones, nor of the Hub's, which has commits."""
    path = model_file(source.value) if source.kind == "model" else Path(source.value).expanduser()
    if source.kind == "checkpoint" and path.is_dir():
        inside = (each for each in path.iterdir() if each.suffix in _IN_FOLDERS)
        return sorted(inside, key=lambda each: (each.suffix in _SETTINGS, each.name))
    if source.kind not in ("model", "checkpoint") or not path.is_file():
        return []
    return [path, *(each for each in [contact_file(path)] if source.contacts and each.is_file())]


def _sha256(path: Path) -> str:
    return sha256(path, 0, path.stat().st_size)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or None."""
    try:
        result = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=folder, capture_output=True, text=True, check=False, timeout=_GIT_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if result.returncode else result.stdout
