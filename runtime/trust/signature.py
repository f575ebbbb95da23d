"""Every file of an artifact against its signature, before anything of it is opened.

Two readings: ``model.sig``, whose signature is over a list of files with their SHA-256; then every
file that is in the folder. Only then may others read it.
"""

import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ArtifactError
from runtime.files import FileEntry, Part, blocks, problems_with_parts
from runtime.trust.bundle import FILE_NAME, Signed, read_bundle, signed_files
from runtime.trust.keys import check_signature
from runtime.trust.whom import Trusted

_MOST_NAMED = 5
_ADVICE = "Do not use this artifact, or copy it anew from who signed it"

# Where a file lies and when it last changed: nobody but root can set the last of these.
_Stamp = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Verified:
    """An artifact whose files are what was signed.

    Attributes:
        folder: the artifact.
        signed: digests of its files.
        sizes: of them, in bytes.
    """

    folder: Path
    signed: Signed
    sizes: Mapping[str, int]

    def is_of(self, name: str, data: bytes) -> bool:
        """Whether ``data`` is what was signed under ``name``."""
        parts = self.signed.files.get(name, {})
        return self.sizes.get(name) == len(data) and all(
            hashlib.sha256(data[begin:end]).hexdigest() == digest
            for (begin, end), digest in parts.items()
        )

    def problems(self, files: Mapping[str, FileEntry]) -> tuple[list[str], dict[str, FileEntry]]:
        """What a manifest says otherwise, in sentences; and files to compare by reading them.

        Digests are compared with those of the signature, which were just computed. Those of parts
        of other sizes cannot be.
        """
        found: list[str] = []
        left: dict[str, FileEntry] = {}
        for name, entry in files.items():
            parts = self.signed.files.get(name)
            if parts is None:
                found.append(f"{name} is not signed")
                continue
            size = self.sizes[name]
            digests = [*parts.values()]
            if size != entry.bytes:
                found.append(f"{name} has {size} bytes, expected {entry.bytes}")
            elif len(parts) == 1:
                if digests != [entry.sha256]:
                    found.append(f"{name} was changed after it was built (SHA-256 differs)")
            elif not entry.blocks or [*parts] != [*blocks(size)]:
                left[name] = entry
            elif digests != entry.blocks:
                found.append(f"{name} was changed after it was built (SHA-256 differs)")
        return found, left


_passed: dict[tuple[Path, Trusted], tuple[dict[str, _Stamp] | None, Verified]] = {}
_passing = threading.Lock()


def verify_once(folder: Path, who: Trusted) -> Verified:
    """``verify``, but for an artifact that passed in this process and was not touched since.

    Its files are then those of before by name, place, size and both times; nothing is read again.

    Raises:
        ArtifactError: as ``verify``.
    """
    with _passing:
        key = folder.resolve(), who
        now = _stamps(key[0])
        before, verified = _passed.pop(key, (None, None))
        if verified is not None and now is not None and now == before:
            _passed[key] = now, verified
            return verified
        verified = verify(folder, who)
        _passed[key] = now, verified
        return verified


def verify(folder: Path, who: Trusted) -> Verified:
    """Compares every file of an artifact with its signature, in several threads.

    Args:
        folder: the artifact.
        who: must have signed it.

    Raises:
        ArtifactError: it is not signed, or by another; a file is changed, missing or new; a link.
        InputError: ``who`` is no key that can sign artifacts.
        UnsupportedError: ``cryptography`` is not installed.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not an artifact: it is not a folder")
    path = folder / FILE_NAME
    bundle = read_bundle(folder)
    check_signature(bundle, who, path)
    signed = signed_files(bundle.dsse_envelope.payload, path)
    sizes = {name: entry.st_size for name, entry in _files(folder, signed.ignored)}
    problems = {name: "is missing" for name in signed.files if name not in sizes}
    problems |= dict.fromkeys(sizes.keys() - signed.files, "was added after it was signed")
    parts: list[Part] = []
    for name, spans in signed.files.items():
        if name in problems:
            continue
        for (begin, end), digest in spans.items():
            parts.append((name, (begin, sizes[name] if end is None else end), digest))
        if parts[-1][1][1] != sizes[name]:
            problems[name] = f"has {sizes[name]} bytes, expected {parts[-1][1][1]}"
    # What is known to be wrong by its size is not read.
    problems = problems or problems_with_parts(folder, parts, "signed")
    if problems:
        named = "; ".join(f"{name} {problems[name]}" for name in sorted(problems)[:_MOST_NAMED])
        more = f"; and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
        raise ArtifactError(f"{path} is not of what is in the folder: {named}{more}. {_ADVICE}")
    return Verified(folder, signed, sizes)


def files_to_sign(folder: Path) -> list[str]:
    """Names of all files but the signature, in order.

    Raises:
        ArtifactError: the folder holds a link, or something else that is no file.
    """
    return sorted(name for name, _ in _files(folder, frozenset()))


def _stamps(folder: Path) -> dict[str, _Stamp] | None:
    try:
        files = [*_files(folder, frozenset()), (FILE_NAME, (folder / FILE_NAME).lstat())]
    except (ArtifactError, OSError):
        return None  # ``verify`` says what is wrong
    return {
        name: (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in files
    }


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
