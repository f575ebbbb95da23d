"""Embeddings to write, and what is read back."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from pyarrow import parquet

from runtime import Embedding

ENDINGS = [".npz", ".h5", ".parquet"]


def embeddings(
    proteins: int, width: int = 8, residues: int | None = None, dtype: str = "float32"
) -> Iterator[Embedding]:
    """Numbered, each with values of its own; ``residues`` rows each, or one without."""
    random = np.random.default_rng(0)
    for number in range(proteins):
        length = 7 if residues is None else number % (residues + 1)
        shape = (width,) if residues is None else (length, width)
        yield Embedding(f"p{number}", length + 2, random.random(shape).astype(dtype))


def read(path: Path) -> list[Embedding]:
    """Every protein of a file, by its library's plain reader."""
    if path.suffix == ".parquet":
        table = parquet.read_table(path)
        values = [np.array(value) for value in table["embeddings"].to_pylist()]
        return list(
            map(Embedding, table["ids"].to_pylist(), table["num_tokens"].to_pylist(), values)
        )
    with np.load(path) if path.suffix == ".npz" else h5py.File(path) as file:
        rows = file["embeddings"][:]
        ids = [name if isinstance(name, str) else name.decode() for name in file["ids"][:]]
        values = np.split(rows, file["offsets"][1:-1]) if "offsets" in file else list(rows)
        return list(map(Embedding, ids, file["num_tokens"][:].tolist(), values))


def assert_same(found: list[Embedding], expected: list[Embedding]) -> None:
    """Ids, lengths and every value."""
    assert [e.id for e in found] == [e.id for e in expected]
    assert [e.num_tokens for e in found] == [e.num_tokens for e in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.values.reshape(other.values.shape), other.values)
