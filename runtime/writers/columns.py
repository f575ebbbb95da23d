"""Columns beside the vectors, for those who ask for them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError
from runtime.runner import Embedding


def _sha256(embedding: Embedding) -> str:
    return hashlib.sha256(embedding.record.sequence.encode(errors="surrogateescape")).hexdigest()


COLUMNS: dict[str, Callable[[Embedding], str]] = {
    "header": lambda embedding: embedding.record.header,
    "sequence": lambda embedding: embedding.record.sequence,
    "sha256": _sha256,
}
# The same of what is no vector.
OTHERS: dict[str, Callable[[Embedding], str]] = {
    "mutant": lambda embedding: embedding.record.sequence,
    "length": lambda embedding: str(embedding.num_tokens - 2),
}


@dataclass(frozen=True)
class Columns:
    """Of a file of vectors.

    Attributes:
        added: names of ``COLUMNS`` or ``OTHERS``.
        vectors: names of the columns of vectors, which lie one behind the other in a row; or of the
            one column of numbers.
    """

    added: Sequence[str] = ()
    vectors: Sequence[str] = ("embeddings",)


USUAL = Columns()


def columns_of(given: str | None) -> tuple[str, ...]:
    """Names of ``COLUMNS`` in the order of a list with commas, each once.

    Raises:
        InputError: another name.
    """
    names = tuple(dict.fromkeys(filter(None, map(str.strip, (given or "").split(",")))))
    if unknown := [name for name in names if name not in COLUMNS]:
        raise InputError(f"--with knows {', '.join(COLUMNS)}, got {unknown[0]!r}")
    return names


def check_columns(added: Sequence[str], num_vectors: int, output: Path) -> None:
    """Raises InputError where a file has no place for them."""
    if output.suffix == ".parquet":
        return
    if added:
        raise InputError(f"--with adds columns to Parquet, and {output} is none. Give -o NAME/")
    if num_vectors > 1:
        raise InputError(
            f"several layers or poolings go to columns of Parquet, and {output} is none. "
            "Give -o NAME/"
        )
