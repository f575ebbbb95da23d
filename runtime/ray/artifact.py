"""An artifact on its way to the nodes: by a path that they share, or through Ray's object store.

Whichever it is, its files are compared with the manifest once a node and run, by the first actor.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from runtime import manifest as manifests
from runtime.errors import ArtifactError
from runtime.manifest_schema import Manifest
from runtime.staging import staging
from runtime.trust.bundle import FILE_NAME as SIGNATURE
from runtime.trust.signature import files_to_sign
from runtime.trust.whom import trusted

# An object of the store; small enough to write one while the next comes.
CHUNK_BYTES = 64 << 20

# The chunks of each file, as references into the object store.
Files = Mapping[str, list[Any]]


@dataclass(frozen=True)
class Shipped:
    """An artifact as the driver knows it.

    Attributes:
        folder: where the driver has it, absolute.
        seal: of its manifest, which seals every file.
        run: a name of this run; files are compared anew in each.
        trust: whom the driver trusts to have signed it, in PEM; None: everybody, but for nodes with
            an ``ESM2_TRUSTED_KEY`` of their own.
    """

    folder: str
    seal: str
    run: str
    trust: str | None = None

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> "Shipped":
        """An artifact that the driver has read."""
        who = trusted(None)
        trust = who.pem.decode(errors="replace") if who else None
        return cls(str(folder), manifest.manifest_sha256, secrets.token_hex(8), trust)


def put_files(folder: Path) -> Files:
    """Puts all files of an artifact into the object store."""
    import ray

    manifest = manifests.read(folder, check_files=False)
    names = {manifests.FILE_NAME, *manifest.files}
    if (folder / SIGNATURE).is_file():
        names |= {SIGNATURE}
    if trusted(None):  # what was signed beside the files of the manifest must be there too
        names |= {*files_to_sign(folder)}
    files: dict[str, list[Any]] = {}
    for name in sorted(names):
        path = folder / name
        size = path.stat().st_size
        with path.open("rb") as file:
            files[name] = [
                ray.put(np.fromfile(file, np.uint8, CHUNK_BYTES))
                for _ in range(0, size, CHUNK_BYTES)
            ]
    return files


def is_here(shipped: Shipped) -> bool:
    """Whether this node has the artifact: at the driver's path, or unpacked before."""
    return _is_it(Path(shipped.folder), shipped) or _is_it(_unpacked(shipped), shipped)


def on_this_node(shipped: Shipped, files: Files | None) -> Path:
    """The artifact's folder on this node, its files compared with the manifest.

    Args:
        shipped: the artifact.
        files: from ``put_files``, for nodes that do not have it.

    Raises:
        ArtifactError: its files are damaged, or it is not here and there are no ``files``.
    """
    cache = _cache()
    with FileLock(cache / f"{shipped.seal}.lock"):
        folder = Path(shipped.folder)
        if not _is_it(folder, shipped):
            folder = _unpacked(shipped)
            if not _is_it(folder, shipped):
                _unpack(shipped, files, folder)
        checked = cache / f"{shipped.seal}.checked"
        now = f"{shipped.run} {folder}"
        if not checked.exists() or checked.read_text() != now:
            manifests.check(_read(folder, shipped), folder)
            checked.write_text(now)
    return folder


def _is_it(folder: Path, shipped: Shipped) -> bool:
    """Another artifact at the same path is not it."""
    try:
        return _read(folder, shipped).manifest_sha256 == shipped.seal
    except ArtifactError:
        return False


def _read(folder: Path, shipped: Shipped) -> Manifest:
    return manifests.read(folder, check_files=False, trust=shipped.trust)


def _unpack(shipped: Shipped, files: Files | None, folder: Path) -> None:
    import ray

    if files is None:
        raise ArtifactError(
            f"artifact {shipped.folder} is not on this node. Put it on a path that all nodes share"
        )
    with staging(folder) as aside:
        aside.mkdir()
        for name, chunks in files.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            with (aside / name).open("wb") as file:
                for chunk in chunks:
                    file.write(ray.get(chunk))
        manifests.read(aside, trust=shipped.trust)
        shutil.rmtree(folder, ignore_errors=True)  # of before, without this signature
        aside.rename(folder)


def _unpacked(shipped: Shipped) -> Path:
    return _cache() / shipped.seal


def _cache() -> Path:
    """Of this user on this node alone: what it says of files is believed."""
    cache = Path(tempfile.gettempdir()) / f"esm2-engines-ray-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.stat().st_uid != os.getuid() or cache.is_symlink():
        raise ArtifactError(f"{cache} is another user's. Set TMPDIR to another folder")
    return cache
