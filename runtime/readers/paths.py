"""What was given as input: files, folders, patterns; all become files."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from runtime.errors import InputError
from runtime.readers.fasta import STDIN
from runtime.readers.records import printable

COMPRESSED = ("gz", "zst", "bz2", "xz")
FASTA = ("fasta", "fa", "faa", "fas", "fsa", "pep", "seq")
TABLES = ("csv", "tsv", "parquet")


def files_of(inputs: Iterable[str], tables: bool, output: str) -> tuple[str, ...]:
    """The files that are meant, in order; those of a folder or a pattern by name.

    Args:
        inputs: files, ``-``, folders (the files in them whose names end as FASTA's or tables' do)
            or patterns of ``glob``, with ``**`` for folders below.
        tables: look for tables in folders, and not for FASTA.
        output: what is written, which neither a folder nor a pattern means.

    Raises:
        InputError: a folder or a pattern without files, a file that is meant twice.
    """
    files: list[str] = []
    # By what each really is: which argument meant it.
    meant: dict[str, str] = {}
    for given in inputs:
        if given == STDIN or not (Path(given).is_dir() or _is_pattern(given)):
            found = [given]
        else:
            found = _in_folder(given, tables) if Path(given).is_dir() else _matching(given)
            found = _once([path for path in found if not _is_of(output, path)])
            if not found:
                raise InputError(f"{printable(given)} means no file but what is written")
        for path in found:
            by = meant.setdefault(os.path.realpath(path), given)
            if by != given:
                raise InputError(
                    f"{printable(path)} is given twice, by {printable(by)} and by "
                    f"{printable(given)}. Give it once"
                )
        files += found
    return tuple(files)


def _once(paths: Iterable[str]) -> list[str]:
    """Each file by the first of its names: links may give it others."""
    names: dict[str, str] = {}
    for path in sorted(paths):
        names.setdefault(os.path.realpath(path), path)
    return list(names.values())


def _is_of(output: str, path: str) -> bool:
    real, written = os.path.realpath(path), os.path.realpath(output)
    return real in (written, f"{written}.rejected.tsv") or real.startswith(f"{written}{os.sep}")


def _is_pattern(given: str) -> bool:
    # A file may be named like one.
    return glob.has_magic(given) and not Path(given).exists()


def _in_folder(folder: str, tables: bool) -> list[str]:
    endings = TABLES if tables else FASTA
    found = [str(path) for path in Path(folder).iterdir() if _ends_as(path, endings)]
    if not found:
        looked_for = ", ".join(f".{ending}" for ending in endings)
        advice = "a pattern in quotes, such as 'FOLDER/**/*.fasta', takes others"
        if not tables and any(_ends_as(path, TABLES) for path in Path(folder).iterdir()):
            advice = "for its tables give --sequence-column"
        raise InputError(
            f"folder {printable(folder)} holds no file that ends in {looked_for} (and .gz and the "
            f"like): {advice}"
        )
    return found


def _ends_as(path: Path, endings: tuple[str, ...]) -> bool:
    if path.name.startswith((".", "_")) or not path.is_file():
        return False
    suffixes = path.name.lower().split(".")[1:]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in endings


def _matching(pattern: str) -> list[str]:
    # Not Path.glob: patterns may be absolute, or begin with "..".
    paths = glob.iglob(pattern, recursive=True)  # noqa: PTH207
    found = [path for path in paths if not Path(path).is_dir()]
    if not found:
        raise InputError(f"no file is named like {printable(pattern)}")
    return found
