"""The files of a run: FASTA or tables, the same from the first look at them to the last."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from runtime.errors import InputError
from runtime.readers.fasta import is_regular, read_fasta
from runtime.readers.records import Record, printable
from runtime.readers.tables import Columns, read_tables

# Inode, size and time of the last change; None where the file is gone.
_Stamp = tuple[int, int, int] | None


class Inputs:
    """Files that are read more than once: made before the first look.

    Args:
        paths: ``-`` is standard input.
        columns: of tables; None where the files are FASTA.
    """

    def __init__(self, paths: Sequence[str], columns: Columns | None):
        self._paths = paths
        self._columns = columns
        self._before = self._stamps()

    def records(self, first_row: int) -> Iterator[Record]:
        """From a row on, over all files.

        Raises:
            InputError: as ``read_fasta`` or ``read_tables``; at the end, a file that was changed.
        """
        columns = self._columns
        records = read_tables(self._paths, columns) if columns else read_fasta(self._paths)
        yield from islice(records, first_row, None)
        now = self._stamps()
        for path, before in self._before.items():
            if before != now[path]:
                raise InputError(
                    f"{printable(path)} changed while it was read. Run again when nobody writes it"
                )

    def _stamps(self) -> dict[str, _Stamp]:
        return {path: _stamp(Path(path)) for path in self._paths if is_regular(path)}


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
