"""Where contacts go: maps into ``.npz`` and ``.h5``, the likeliest pairs into tables."""

import importlib.util
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.staging import staging
from runtime.writers.row_files import ENDINGS, check_rows, opened_rows
from runtime.writers.writing import check_place, naming_errors

MAPS = (".npz", ".h5")
COLUMNS = {"id": "string", "i": "int64", "j": "int64", "probability": "float64"}
TOP = re.compile(r"(?:(\d+)|(\d*)L(?:/(\d+))?|all)")


class Output(Protocol):
    """Takes a protein's map ``[n, n]``; ids may repeat."""

    def add(self, name: str, contacts: NDArray[np.floating]) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Pairs:
    """Which pairs of a map go into a table.

    Attributes:
        min_separation: of two residues along the chain.
        top: how many of the likeliest: a number, a share of the length such as ``L`` or ``L/5``, or
            ``all``.
    """

    min_separation: int = 6
    top: str = "L"

    def __post_init__(self) -> None:
        found = TOP.fullmatch(self.top)
        if not found or found[3] == "0":
            raise InputError(
                f"--top takes a number, L, 2L, L/5 or all, got {self.top!r}: L is the length"
            )

    def count(self, length: int) -> int:
        """How many of a protein of ``length`` residues."""
        found = TOP.fullmatch(self.top)
        assert found is not None
        if self.top == "all":
            return length * length
        if found[1]:
            return int(found[1])
        return max(1, int(found[2] or 1) * length // int(found[3] or 1))

    def of(self, contacts: NDArray[np.floating]) -> Iterator[tuple[int, int, float]]:
        """Positions from 1 on and the probability, the likeliest first."""
        rows, columns = np.triu_indices(len(contacts), self.min_separation)
        found = contacts[rows, columns]
        for place in np.argsort(-found, kind="stable")[: self.count(len(contacts))]:
            yield int(rows[place]) + 1, int(columns[place]) + 1, float(found[place])


def check_contacts_output(path: Path, pairs: Pairs | None) -> None:
    """Raises InputError or OutputError, before any work is done, if ``path`` cannot be written."""
    if path.suffix not in (*MAPS, *ENDINGS):
        raise InputError(
            f"cannot write {path}: the ending says the format, {' or '.join(MAPS)} for maps, "
            f"{' or '.join(ENDINGS)} for the likeliest pairs"
        )
    if path.suffix in ENDINGS:
        check_rows(path, "pairs")
        return
    if pairs is not None:
        raise InputError(
            f"--top and --min-separation choose pairs for a table, and {path} holds whole maps. "
            f"Give -o NAME{ENDINGS[0]}"
        )
    if path.suffix == ".h5" and importlib.util.find_spec("h5py") is None:
        raise InputError(f"cannot write {path}: h5py is not installed. pip install h5py")
    check_place(path)


@contextmanager
def opened_output(path: Path, pairs: Pairs, metadata: dict[str, str]) -> Iterator[Output]:
    """Gives what takes maps; ``path`` appears when the block ends, whole."""
    if path.suffix in ENDINGS:
        with opened_rows(path, COLUMNS, metadata) as rows:
            yield _Table(rows, pairs)
        return
    target = path.resolve()
    with ExitStack() as stack, naming_errors(path):
        aside = stack.enter_context(staging(target))
        with ExitStack() as file:
            kind = _Npz if path.suffix == ".npz" else _Hdf5
            yield kind(file, aside, metadata)
        aside.replace(target)


class _Table:
    def __init__(self, rows: Any, pairs: Pairs):
        self._rows = rows
        self._pairs = pairs

    def add(self, name: str, contacts: NDArray[np.floating]) -> None:
        for i, j, probability in self._pairs.of(contacts):
            self._rows.add([name, i, j, probability])


class Repeated:
    """Names of what ids name; the second of an id is ``ID (2)``."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def name_of(self, name: str) -> str:
        """Of the next that has this id."""
        self._seen[name] = count = self._seen.get(name, 0) + 1
        return name if count == 1 else f"{name} ({count})"


class _Npz(Repeated):
    def __init__(self, stack: ExitStack, path: Path, metadata: dict[str, str]):
        super().__init__()
        self._archive = stack.enter_context(
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, True, 1)
        )

    def add(self, name: str, contacts: NDArray[np.floating]) -> None:
        with self._archive.open(f"{self.name_of(name)}.npy", "w", force_zip64=True) as member:
            npy.write_array(member, contacts, allow_pickle=False)


class _Hdf5(Repeated):
    def __init__(self, stack: ExitStack, path: Path, metadata: dict[str, str]):
        import h5py

        super().__init__()
        self._file = stack.enter_context(h5py.File(path, "w"))
        self._file.attrs.update(metadata)

    def add(self, name: str, contacts: NDArray[np.floating]) -> None:
        options = {"compression": "gzip", "compression_opts": 1} if contacts.size else {}
        # A slash would make a folder of it, in which another id may be a file.
        self._file.create_dataset(self.name_of(name).replace("/", "|"), data=contacts, **options)
