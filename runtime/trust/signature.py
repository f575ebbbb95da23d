"""Every file of an artifact against its signature, before anything but its manifest is read.

``model.sig`` is read first: whom it is by, and what files there must be, with their SHA-256. Then
the manifest, whose digest is one of these. Its digests of blocks are thereby signed too, so that
each file is read once, by several threads.
"""

import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ArtifactError
from runtime.files import FileEntry, problem_with_files
from runtime.trust.bundle import FILE_NAME, Signed, read_bundle, signed_files
from runtime.trust.keys import check_signature
from runtime.trust.whom import Trusted

_MOST_NAMED = 5
_ADVICE = "Do not use this artifact, or copy it anew from who signed it"

# Where a file lies, its size, and when it last changed: nobody but root can set the last of these.
_Stamp = tuple[int, int, int, int, int]
# Of artifacts that passed in this process.
_passed: dict[tuple[Path, str], dict[str, _Stamp]] = {}
_passing = threading.Lock()


@dataclass(frozen=True)
class Signature:
    """Of an artifact, by whom a user trusts; the files are still to be compared.

    Attributes:
        folder: the artifact.
        signed: what files there must be.
        stamps: of the files that are there, the same ones.
    """

    folder: Path
    signed: Signed
    stamps: Mapping[str, _Stamp]

    def check_bytes(self, name: str, data: bytes) -> None:
        """Raises ArtifactError if ``data`` is not what was signed under ``name``."""
        if hashlib.sha256(data).hexdigest() != self.signed.digests.get(name):
            was = "was changed after it was" if name in self.signed.digests else "is not"
            raise _refused(self.folder, {name: f"{was} signed"})

    def check_files(self, files: Mapping[str, FileEntry], checked: str) -> None:
        """Compares all files of the artifact.

        Those that passed in this process before, and were not touched since, are not read again.

        Args:
            files: of the manifest, which is what was signed.
            checked: the manifest's own name, whose bytes were compared.

        Raises:
            ArtifactError: a file is not what was signed; names each.
        """
        digests = self.signed.digests
        problems = {}
        for name, entry in files.items():
            if name not in digests:
                problems[name] = "is not signed"
            elif digests[name] != entry.sha256:
                problems[name] = "is another in the manifest (SHA-256 differs)"
        if problems:
            raise _refused(self.folder, problems)
        others = {
            name: FileEntry(stamp[2], digests[name])
            for name, stamp in self.stamps.items()
            if name not in files and name != checked
        }
        key = self.folder.resolve(), hashlib.sha256(repr(digests).encode()).hexdigest()
        with _passing:
            if _passed.pop(key, None) != self.stamps:
                found = problem_with_files(self.folder, {**others, **files})
                if found:
                    raise _refused(self.folder, {}, found)
            _passed[key] = dict(self.stamps)


def read_signature(folder: Path, who: Trusted) -> Signature:
    """Reads the signature of an artifact, and which files there are; opens none of them.

    Args:
        folder: the artifact.
        who: must have signed it.

    Raises:
        ArtifactError: it is not signed, or by another; a file is missing or new; a link.
        InputError: ``who`` is no key that can sign artifacts.
        UnsupportedError: ``cryptography`` is not installed.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not an artifact: it is not a folder")
    path = folder / FILE_NAME
    bundle = read_bundle(folder)
    check_signature(bundle, who, path)
    signed = signed_files(bundle.dsse_envelope.payload, path)
    stamps = {
        name: (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        for name, s in _files(folder, signed.ignored)
    }
    problems = dict.fromkeys(signed.digests.keys() - stamps, "is missing")
    problems |= dict.fromkeys(stamps.keys() - signed.digests, "was added after it was signed")
    if problems:
        raise _refused(folder, problems)
    return Signature(folder, signed, stamps)


def files_to_sign(folder: Path) -> list[str]:
    """Names of all files but the signature, in order.

    Raises:
        ArtifactError: the folder holds a link, or something else that is no file.
    """
    return sorted(name for name, _ in _files(folder, frozenset()))


def _refused(folder: Path, problems: Mapping[str, str], more: list[str] | None = None) -> Exception:
    sentences = [f"{name} {problems[name]}" for name in sorted(problems)] + (more or [])
    if len(sentences) > _MOST_NAMED:
        sentences[_MOST_NAMED:] = [f"and {len(sentences) - _MOST_NAMED} more"]
    return ArtifactError(
        f"artifact {folder} is not what was signed: {'; '.join(sentences)}. {_ADVICE}"
    )


def _files(folder: Path, ignored: frozenset[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Every file below ``folder`` but the signature and what is ignored; nothing is followed."""
    folders = [""]
    while folders:
        inside = folders.pop()
        try:
            entries = [*os.scandir(folder / inside)]
        except OSError as error:
            raise ArtifactError(f"cannot read {folder / inside}: {error.strerror}") from None
        for entry in entries:
            name = f"{inside}{entry.name}"
            if name == FILE_NAME or name in ignored:
                continue
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                folders.append(f"{name}/")
            elif stat.S_ISREG(status.st_mode):
                yield name, status
            else:
                what = "a link" if stat.S_ISLNK(status.st_mode) else "not a file"
                raise ArtifactError(f"artifact {folder} is refused: {name} is {what}. {_ADVICE}")
