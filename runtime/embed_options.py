"""What ``esm2-run embed`` is asked for."""

from dataclasses import dataclass
from pathlib import Path

from runtime.attention import Attention
from runtime.pooling import Pool
from runtime.readers.records import RecordOptions
from runtime.readers.tables import Columns


@dataclass(frozen=True)
class EmbedOptions:
    """What the command was asked for; None where nothing was said.

    Attributes:
        artifact, inputs: what to run, on which files.
        engine, device, attention, tf32, cuda_graphs, threads, concurrency: as in ``runtime.load``.
        pools, layers: of the vectors, see ``runtime.several``; no layer takes the last.
        max_tokens: as in ``AsyncInferenceRunner``.
        skip: leave records out that cannot be run.
        records: what is taken beyond ESM-2's alphabet.
        columns: of tables; None where the inputs are FASTA.
        store: the dtype to write, ``"float16"`` or ``"float32"``; None takes the engine's.
        cache: a folder of vectors that are kept over runs; None computes all.
        added: columns beside the vectors, of ``runtime.writers.columns``.
        ray: the address of a Ray cluster that runs the packs, or ``"local"``; None runs them here.
        ray_actors: engines there; None takes one a card, or one a node.
    """

    artifact: Path
    inputs: tuple[str, ...]
    engine: str
    device: str
    attention: Attention | None
    tf32: bool
    cuda_graphs: bool
    threads: int | None
    concurrency: int | None
    pools: tuple[Pool, ...]
    layers: tuple[int, ...]
    max_tokens: int | None
    skip: bool
    records: RecordOptions
    columns: Columns | None = None
    store: str | None = None
    cache: str | None = None
    added: tuple[str, ...] = ()
    ray: str | None = None
    ray_actors: int | None = None
