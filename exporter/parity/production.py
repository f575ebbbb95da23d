"""What ``esm2-run embed`` writes for a FASTA file: the command, its packs, its order, its files.

The gate's own packs go to the engine one by one. Users have the command choose packs, run several
at once, and read a file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from exporter.parity.answers import Answers, Floats
from exporter.parity.rules.metrics import compare
from exporter.parity.rules.rows import Row
from exporter.parity.truth.packs import STREAM, Pack
from runtime import cli
from runtime.attention import Attention
from runtime.interruption import leaving_it_to_the_caller
from runtime.manifest_schema import EMBEDDING, Manifest, Rows
from runtime.pooling import residue_rows
from runtime.runner import Embedding
from runtime.staging import temporary_folder
from runtime.threads import default_threads
from runtime.writers import write_embeddings
from runtime.writers.writing import FORMATS

# Some 20 packs in two windows, and proteins above the budget.
MAX_TOKENS = 96
# Exit statuses of a command that a signal ended are above it.
BY_SIGNAL = 128
# Ids may repeat.
NUM_IDS = 20


@dataclass(frozen=True)
class _File:
    """An output file: ids ``[N]``, tokens ``[N]``, and for each protein ``[E]`` or ``[L, E]``."""

    ids: list[str]
    num_tokens: list[int]
    proteins: list[Floats]


def rows_of_command(
    folder: Path, manifest: Manifest, name: str, *, pack: Pack, truth: Answers, eager: Answers,
    device: str, threads: int | None, attention: Attention = "auto",
) -> list[Row]:  # fmt: skip
    """Each way to run the command, with what it wrote compared.

    Args:
        folder: the artifact.
        manifest: of it.
        name: the engine.
        pack: the stream's proteins.
        truth: the oracle's answers to them.
        eager: eager fair-esm's in the engine's dtype.
        device: where the engine runs.
        threads: of the engine; two packs at once take two, on one core too.
        attention: ``"standard"`` in each way, else in one of them.

    Raises:
        KeyboardInterrupt, SystemExit: Ctrl-C or a signal while the command ran.
    """
    ids = [f"protein-{i % NUM_IDS}" for i in range(len(pack))]
    rows = []
    with temporary_folder("stream") as workspace:
        fasta = workspace / "stream.fasta"
        lines = (f">{id_}\n{p.sequence}\n" for id_, p in zip(ids, pack, strict=True))
        fasta.write_text("".join(lines))
        for suffix, own, what in _ways(manifest, name, attention):
            output = workspace / f"out{suffix}"
            command = [
                "embed", str(folder), str(fasta), "-o", str(output), "--engine", name, "--device",
                device, "--max-tokens", str(MAX_TOKENS), "--threads",
                str(max(threads or default_threads(), 2)), *own,
            ]  # fmt: skip
            with leaving_it_to_the_caller():
                said = CliRunner().invoke(cli.main, command, standalone_mode=False)
            if isinstance(said.exception, click.Abort):
                raise KeyboardInterrupt
            if isinstance(said.exception, SystemExit) and said.exit_code > BY_SIGNAL:
                raise said.exception
            row = Row(
                pack=f"{STREAM}, by esm2-run embed -o OUT{suffix} {' '.join(own)}",
                tensor=EMBEDDING
                if what == "proteins"
                else f"representations.{manifest.layers[-1]}",
                rows=what,
                longest=truth.max_seqlen,
            )
            rows.append(_row_of(row, said, output, ids, truth, eager))
    return rows


def _ways(
    manifest: Manifest, name: str, attention: Attention
) -> Iterator[tuple[str, list[str], Rows]]:
    """The suffix of the output, options of the command, and what it has a row for each of."""
    # A plan was built with an attention, and takes no other.
    standard = [] if manifest.engines[name].plans else ["--v1-attention"]
    always = standard if attention == "standard" else []
    yield ".npz", ["--pool", manifest.pool or "mean", "--concurrency", "2", *always], "proteins"
    suffix = ".parquet" if find_spec("pyarrow") else ".npz"
    yield suffix, ["--pool", "none", *standard], "tokens"


def _row_of(
    row: Row, said: Result, output: Path, ids: list[str], truth: Answers, eager: Answers
) -> Row:
    """What was written, compared with the oracle."""
    if said.exit_code:
        lines = said.output.strip().splitlines()
        if not lines or not isinstance(said.exception, SystemExit):
            lines = [repr(said.exception)]
        return msgspec.structs.replace(row, problem=lines[-1])
    file = _read(output)
    if problem := _problem(file, output, ids, np.diff(truth.cu_seqlens)):
        return msgspec.structs.replace(row, problem=problem)
    proteins = [np.atleast_2d(protein) for protein in file.proteins]
    bounds = np.cumsum([0, *map(len, proteins)]).astype(np.int32)
    expected, rounded = (answers.tensors[row.tensor] for answers in (truth, eager))
    if row.rows == "tokens":
        spans = zip(truth.cu_seqlens[:-1], truth.cu_seqlens[1:], strict=True)
        tokens = np.arange(truth.cu_seqlens[-1])
        kept = np.concatenate([tokens[residue_rows(*span)] for span in spans])
        expected, rounded = expected[kept], rounded[kept]
    try:
        eager_error = compare(rounded, expected, bounds)
    except ValueError as wrong:
        problem = f"eager fair-esm in this dtype gives {wrong}, so there is no measure"
        return msgspec.structs.replace(row, problem=problem)
    try:
        error = compare(np.concatenate(proteins), expected, bounds)
    except ValueError as wrong:
        return msgspec.structs.replace(row, eager=eager_error, problem=str(wrong))
    return msgspec.structs.replace(row, engine=error, eager=eager_error)


def _problem(file: _File, output: Path, ids: list[str], lengths: NDArray[np.integer]) -> str:
    """What is wrong with a file beside its numbers; those that other formats hold are compared."""
    if file.ids != ids:
        return "its ids are not the input's, in their order"
    if file.num_tokens != lengths.tolist():
        return "its num_tokens are not those of the proteins"
    for suffix, (_, library) in FORMATS.items():
        if suffix == output.suffix or (library and not find_spec(library)):
            continue
        other = output.with_name(f"again{suffix}")
        rows = zip(file.ids, file.num_tokens, file.proteins, strict=True)
        write_embeddings(other, (Embedding(*row) for row in rows), {})
        again = _read(other)
        same = all(map(np.array_equal, again.proteins, file.proteins))
        if not same or (again.ids, again.num_tokens) != (file.ids, file.num_tokens):
            return f"as a {suffix} file it does not hold what was given to it"
    return ""


def _read(path: Path) -> _File:
    """By the format's own library, as ``docs/output.md`` describes it."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        table = parquet.read_table(path)
        ids, num_tokens = table["ids"].to_pylist(), table["num_tokens"].to_pylist()
        proteins = [_matrix(row.values) for row in table["embeddings"]]
        return _File(ids, num_tokens, proteins)
    if path.suffix == ".h5":
        import h5py

        with h5py.File(path) as file:
            arrays = {name: file[name][:] for name in file}
            arrays["ids"] = file["ids"].asstr()[:]
    else:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    proteins = list(arrays["embeddings"])
    if "offsets" in arrays:
        proteins = np.split(arrays["embeddings"], arrays["offsets"][1:-1])
    return _File(arrays["ids"].tolist(), arrays["num_tokens"].tolist(), proteins)


def _matrix(values: Any) -> Floats:
    """Of Arrow's list of numbers, or of lists of numbers."""
    if not hasattr(values, "flatten") or values.type.num_fields == 0:
        return values.to_numpy()  # type: ignore[no-any-return]
    return values.flatten().to_numpy().reshape(len(values), -1)  # type: ignore[no-any-return]
