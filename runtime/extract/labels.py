"""From a record's header to its label and its file: fair-esm's, where a file can be named so."""

import csv
import hashlib
import os
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from runtime.errors import InputError
from runtime.readers.records import Record, printable

ENDING = ".pt"
# "/" would be a folder, a leading dot a hidden file, or with "/" a way out of the folder.
_UNSAFE = re.compile(r"^\.+|[/\0]")
_DIGEST_LENGTH = 12
# Bytes of a file's name where the file system does not say: that of most.
_LONGEST_NAME = 255
_SHOWN = 3


def label_of(record: Record) -> str:
    """The whole header, or ``seqnum`` and its line from 0 where that is empty (esm/data.py:46)."""
    return record.header.strip() or f"seqnum{record.line - 1:09d}"


@dataclass(frozen=True)
class FileNames:
    """How labels name files in one folder.

    Attributes:
        longest: bytes that a name may have.
        tells_case: whether ``a`` and ``A`` are two files.
    """

    longest: int = _LONGEST_NAME
    tells_case: bool = True

    @classmethod
    def in_folder(cls, folder: Path) -> "FileNames":
        """As the file system of ``folder`` wants them, in which a file is made and removed."""
        try:
            longest = os.pathconf(folder, "PC_NAME_MAX")
        except (AttributeError, OSError, ValueError):  # Windows, or not to be told
            longest = _LONGEST_NAME
        probe = folder / "probe"
        probe.touch()
        tells_case = not (folder / "PROBE").exists()
        probe.unlink()
        return cls(longest, tells_case)

    def of(self, label: str, ending: str = ENDING) -> str:
        """``{label}.pt``; else a name of the same beginning with a digest of the whole label."""
        safe = _UNSAFE.sub("_", label)
        name = _bytes(safe) + ending.encode()
        if safe == label and len(name) <= self.longest:
            return label + ending
        # The digest keeps "a/b" and "a_b" apart, and long labels that begin alike.
        end = f"-{hashlib.sha256(_bytes(label)).hexdigest()[:_DIGEST_LENGTH]}{ending}"
        return _bytes(safe)[: self.longest - len(end)].decode(errors="ignore") + end

    def key(self, name: str) -> str:
        """The same for names that would be one file."""
        return name if self.tells_case else unicodedata.normalize("NFC", name).casefold()


@dataclass
class Changed:
    """Labels that no file can be named by.

    Attributes:
        count: of them.
        examples: each with its file, in words.
    """

    count: int = 0
    examples: list[str] = field(default_factory=list)


def check_labels(
    records: Callable[[], Iterator[Record]], names: FileNames, list_file: Path
) -> Changed:
    """Looks at every label before anything is run.

    Eight bytes are kept of each label, not the label.

    Args:
        records: reads them, once more at each call.
        names: of the files.
        list_file: to make, with the labels that are changed and their files.

    Raises:
        InputError: labels occur twice, as in fair-esm (esm/data.py:61), or differ only by case
            where the file system does not tell it; names them.
    """
    changed = Changed()
    digests = array("q")
    with list_file.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, "excel-tab", lineterminator="\n")
        table.writerow(("label", "file"))
        for label in map(label_of, records()):
            name = names.of(label)
            digests.append(hash(names.key(name)))
            if name == label + ENDING:
                continue
            table.writerow((printable(label), printable(name)))
            changed.count += 1
            if changed.count <= _SHOWN:
                changed.examples.append(f"{_shown(label)} is in {_shown(name)}")
    ordered = np.sort(np.array(digests))
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if repeated:
        _refuse(map(label_of, records()), names, repeated)
    return changed


def _refuse(labels: Iterable[str], names: FileNames, repeated: set[int]) -> None:
    """Raises InputError, unless only the digests of keys were equal."""
    sharing: dict[str, list[str]] = {}
    for label in labels:
        key = names.key(names.of(label))
        if hash(key) in repeated:
            sharing.setdefault(key, []).append(label)
    groups = [group for group in sharing.values() if len(group) > 1]
    if not groups:
        return
    first = groups[0]
    if first[0] != first[1]:
        raise InputError(
            f"labels {_shown(first[0])} and {_shown(first[1])} would be one file: this file system "
            "does not tell case apart. Rename one, or write to another file system"
        )
    examples = ", ".join(_shown(group[0]) for group in groups[:_SHOWN])
    more = f" and {len(groups) - _SHOWN:,} more" if len(groups) > _SHOWN else ""
    raise InputError(
        f"{len(groups):,} labels occur more than once: {examples}{more}. Each label names a file: "
        "give each record a header of its own"
    )


def _shown(text: str, longest: int = 60) -> str:
    """In quotes, printable, and cut where it is long."""
    text = printable(text)
    return f"'{text}'" if len(text) <= longest else f"'{text[:longest]}...'"


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
