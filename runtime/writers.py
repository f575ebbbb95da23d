"""Writes embeddings to .npz, .parquet or .h5: aside first, renamed when whole.

Pooled, every format holds ``ids`` and ``embeddings`` ``[N, E]``. Unpooled, the residues of all
proteins stand one after the other in ``embeddings`` ``[sum(L), E]`` (in Parquet: one list per
protein) and ``offsets`` ``[N + 1]`` says where each begins.
"""

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import InputError
from runtime.runner import Embedding

# Rows held in memory before they go to the file, where a format allows it.
ROWS_PER_WRITE = 1024

Writer = Callable[[Path, Iterable[Embedding], dict[str, str]], None]


def check_output(path: Path) -> None:
    """Raises InputError, before any work is done, if ``path`` cannot be written."""
    if path.suffix not in WRITERS:
        raise InputError(
            f"cannot write {path}: the ending says the format, one of {', '.join(WRITERS)}"
        )
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: folder {path.parent} does not exist")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    _, library = WRITERS[path.suffix]
    if library and importlib.util.find_spec(library) is None:
        raise InputError(
            f"cannot write {path}: {library} is not installed. pip install {library}, or write .npz"
        )


def write_embeddings(path: Path, embeddings: Iterable[Embedding], metadata: dict[str, str]) -> None:
    """Writes all embeddings; ``path`` appears only when the last of them is in it.

    Args:
        path: ends in .npz, .parquet or .h5.
        embeddings: consumed once, in order.
        metadata: stored beside the data.
    """
    write, _ = WRITERS[path.suffix]
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(aside, embeddings, metadata)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _write_npz(path: Path, embeddings: Iterable[Embedding], metadata: dict[str, str]) -> None:
    everything = list(embeddings)
    arrays: Any = _columns(everything)
    if offsets := _offsets(everything):
        arrays["offsets"] = np.array([0, *offsets], dtype=np.int64)
    with path.open("wb") as file:
        np.savez(file, **arrays, **_as_arrays(metadata))


def _as_arrays(metadata: dict[str, str]) -> Any:
    return {key: np.array(value) for key, value in metadata.items()}


def _write_h5(path: Path, embeddings: Iterable[Embedding], metadata: dict[str, str]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs.update(metadata)
        for chunk in _chunks(embeddings):
            columns = _columns(chunk)
            columns["ids"] = columns["ids"].astype(object)
            if offsets := _offsets(chunk):
                so_far = len(file["embeddings"]) if "embeddings" in file else 0
                columns["offsets"] = np.array(offsets, dtype=np.int64) + so_far
                if "offsets" not in file:
                    columns["offsets"] = np.concatenate(([0], columns["offsets"]))
            for name, values in columns.items():
                _append(file, name, values, h5py.string_dtype() if name == "ids" else values.dtype)


def _append(file: Any, name: str, values: np.ndarray, dtype: Any) -> None:
    if name not in file:
        shape = (None, *values.shape[1:])
        file.create_dataset(name, data=values, dtype=dtype, maxshape=shape, chunks=True)
        return
    dataset = file[name]
    old = len(dataset)
    dataset.resize(old + len(values), axis=0)
    dataset[old:] = values


def _write_parquet(path: Path, embeddings: Iterable[Embedding], metadata: dict[str, str]) -> None:
    import pyarrow
    from pyarrow import parquet

    writer = None
    for chunk in _chunks(embeddings):
        columns = _columns(chunk)
        width = columns["embeddings"].shape[1]
        flat = pyarrow.array(columns["embeddings"].reshape(-1))
        vectors = pyarrow.FixedSizeListArray.from_arrays(flat, width)
        if offsets := _offsets(chunk):
            vectors = pyarrow.LargeListArray.from_arrays([0, *offsets], vectors)
        table = pyarrow.table(
            {"ids": columns["ids"], "num_tokens": columns["num_tokens"], "embeddings": vectors}
        ).replace_schema_metadata(metadata)
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _columns(embeddings: list[Embedding]) -> dict[str, np.ndarray]:
    stack = np.concatenate if _is_per_residue(embeddings) else np.stack
    return {
        "ids": np.array([embedding.id for embedding in embeddings]),
        "num_tokens": np.array([embedding.num_tokens for embedding in embeddings], dtype=np.int64),
        "embeddings": stack([embedding.values for embedding in embeddings]),
    }


def _offsets(embeddings: list[Embedding]) -> list[int]:
    """Where each protein's rows end, or nothing where there is one row a protein."""
    if not _is_per_residue(embeddings):
        return []
    return list(accumulate(len(embedding.values) for embedding in embeddings))


def _is_per_residue(embeddings: list[Embedding]) -> bool:
    return embeddings[0].values.ndim == 2


def _chunks(embeddings: Iterable[Embedding]) -> Iterator[list[Embedding]]:
    stream = iter(embeddings)
    while chunk := list(islice(stream, ROWS_PER_WRITE)):
        yield chunk


# Ending -> how to write it, and the library that it needs.
WRITERS: dict[str, tuple[Writer, str | None]] = {
    ".npz": (_write_npz, None),
    ".parquet": (_write_parquet, "pyarrow"),
    ".h5": (_write_h5, "h5py"),
}
