"""Ray Data: a dataset of proteins in, the same dataset with a column of vectors out."""

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runtime import manifest as manifests
from runtime.attention import Attention, default_attention
from runtime.errors import InputError, NonFiniteError, UnsupportedError
from runtime.pooling import Pool, check_pool
from runtime.ray.artifact import Shipped, on_this_node, put_files
from runtime.ray.cluster import require_ray
from runtime.ray.plan import check_device_of_actors
from runtime.ray.worker import Loading
from runtime.readers.records import Long, Record, RecordOptions, Rejection
from runtime.runner import AsyncInferenceRunner, Embedding
from runtime.threads import at_least_1
from runtime.tokenizer import Unknown

if TYPE_CHECKING:
    import ray.data

# Rows that an actor gets at once: the more, the evener its packs, and the more a lost actor costs.
BATCH_ROWS = 1024
# Where each residue has a vector: 64 proteins of 300 residues take 100 MB at E = 1280.
BATCH_ROWS_OF_RESIDUES = 64


def embed(
    dataset: "ray.data.Dataset",
    artifact: str | Path,
    *,
    sequence_column: str = "sequence",
    output_column: str = "embedding",
    error_column: str = "error",
    pool: Pool = "mean",
    layer: int | None = None,
    engine: str = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    attention: Attention | None = None,
    tf32: bool = False,
    cuda_graphs: bool = False,
    max_tokens: int | None = None,
    unknown: Unknown = "error",
    upper: bool = False,
    strip_stop: bool = False,
    max_length: int | None = None,
    long: Long = "error",
    batch_size: int | None = None,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    ship: bool | None = None,
    **ray_options: Any,
) -> "ray.data.Dataset":
    """Adds a vector to each row, by actors that hold an engine each.

    Lazy, as Ray Data is. Rows keep their columns; their order is Ray's, which keeps it where
    ``ray.data.DataContext`` says so (``execution_options.preserve_order``).

    Args:
        dataset: rows with a sequence each.
        artifact: the folder that ``esm2-export build`` wrote, as this process sees it.
        sequence_column: of strings.
        output_column: that is added: float lists of length E, or lists of them where ``pool`` is
            ``"none"``; null where the row could not be run.
        error_column: that is added: why it could not, else null.
        pool: as in ``AsyncInferenceRunner``.
        layer: as in ``AsyncInferenceRunner``.
        engine: as in ``runtime.load``.
        device: as in ``runtime.load``.
        attention: as in ``runtime.load``.
        tf32: as in ``runtime.load``.
        cuda_graphs: as in ``runtime.load``.
        max_tokens: budget of a pack; None takes the device's.
        unknown: as in ``RecordOptions``.
        upper: as in ``RecordOptions``.
        strip_stop: as in ``RecordOptions``.
        max_length: as in ``RecordOptions``.
        long: as in ``RecordOptions``; what is skipped has its reason as an error.
        batch_size: rows that an actor packs together; None takes 1,024, and 64 where ``pool`` is
            ``"none"``.
        concurrency: actors, or the least and the most of them; None takes one. Leave a CPU of the
            cluster for what reads and writes.
        num_cpus: of each actor, which runs so many threads; None takes one.
        num_gpus: of each actor: 1 for an engine on a card.
        ship: send the artifact's files through Ray's object store to nodes that do not see its
            path. None does where the cluster has several nodes.
        ray_options: for Ray's actors, as ``map_batches`` takes them.

    Raises:
        InputError: an option that cannot be used, or Ray is not installed.
        ArtifactError: the artifact is missing or damaged.
    """
    require_ray()
    import ray
    from ray.data import ActorPoolStrategy

    check_pool(pool)
    check_device_of_actors(device)
    records = RecordOptions(unknown, upper, strip_stop, max_length, long)
    folder = Path(artifact).resolve()
    manifest = manifests.read(folder, check_files=False)
    if batch_size is None:
        batch_size = BATCH_ROWS_OF_RESIDUES if pool == "none" else BATCH_ROWS
    threads = max(1, int(num_cpus or 1))
    loading = Loading(
        engine, device, attention or default_attention(), threads, threads, tf32, cuda_graphs
    )
    if ship is None:
        ship = ray.is_initialized() and sum(node["Alive"] for node in ray.nodes()) > 1
    least, most = concurrency if isinstance(concurrency, tuple) else (concurrency or 1,) * 2
    for count in (least, most):
        at_least_1("concurrency", count)
    return dataset.map_batches(
        _Embedder,
        batch_size=at_least_1("batch_size", batch_size),
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        fn_constructor_kwargs={
            "shipped": Shipped.of(folder, manifest),
            # Pickled here, the references live as long as this job: an actor that Ray starts again
            # finds its files.
            "files": ray.cloudpickle.dumps(put_files(folder)) if ship else None,
            "loading": loading,
            "columns": (sequence_column, output_column, error_column),
            "running": {"max_tokens": max_tokens, "pool": pool, "layer": layer},
            "records": records,
        },
        **ray_options,
    )


class _Embedder:
    """One engine; called with a table of rows."""

    def __init__(
        self, shipped: Shipped, files: bytes | None, loading: Loading,
        columns: tuple[str, str, str], running: dict[str, Any], records: RecordOptions,
    ):  # fmt: skip
        found = pickle.loads(files) if files else None
        self._engine = loading.load(on_this_node(shipped, found), shipped.trust)
        self._columns = columns
        self._running = running
        self._records = records
        self._runner([])  # a layer that there is not is an error here

    def __call__(self, table: Any) -> Any:
        import pyarrow

        sequence_column, output_column, error_column = self._columns
        self._check(table.column_names)
        sequences = table.column(sequence_column).cast(pyarrow.large_string()).to_pylist()
        errors: list[str | None] = [None] * len(sequences)
        found: dict[int, Embedding] = {}
        places = []
        for place, sequence in enumerate(sequences):
            if sequence is None:
                errors[place] = f"the column {sequence_column!r} is null"
            else:
                places.append(place)
        try:
            self._run(places, sequences, found, errors)
        except (NonFiniteError, UnsupportedError):
            # Some protein of some pack: one by one they tell which.
            for place in places:
                if place not in found and errors[place] is None:
                    self._run_alone(place, sequences, found, errors)
        table = table.append_column(output_column, self._vectors(found, len(sequences)))
        return table.append_column(error_column, pyarrow.array(errors, pyarrow.string()))

    def _check(self, columns: list[str]) -> None:
        sequence_column, *added = self._columns
        if sequence_column not in columns:
            raise InputError(
                f"the dataset has no column {sequence_column!r}, it has {', '.join(columns)}. "
                "Give sequence_column"
            )
        if twice := [name for name in added if name in columns]:
            raise InputError(
                f"the dataset has a column {twice[0]!r} already. Give another output_column or "
                "error_column"
            )

    def _run(
        self, places: list[int], sequences: list[str], found: dict[int, Embedding],
        errors: list[str | None],
    ) -> None:  # fmt: skip
        rejections: list[Rejection] = []
        runner = self._runner(rejections)
        records = (Record(f"row {place}", sequences[place]) for place in places)
        try:
            for embedding in runner.run(records):
                found[places[embedding.row]] = embedding
        finally:
            for rejection in rejections:
                errors[places[rejection.row]] = f"{rejection.reason}. {rejection.advice}"

    def _run_alone(
        self, place: int, sequences: list[str], found: dict[int, Embedding],
        errors: list[str | None],
    ) -> None:  # fmt: skip
        try:
            self._run([place], sequences, found, errors)
        except (NonFiniteError, UnsupportedError) as error:
            errors[place] = str(error)

    def _runner(self, rejections: list[Rejection]) -> AsyncInferenceRunner:
        options = self._records
        return AsyncInferenceRunner(
            self._engine, unknown=options.unknown, upper=options.upper,
            strip_stop=options.strip_stop, max_length=options.max_length, long=options.long,
            on_rejected=rejections.append, **self._running,
        )  # fmt: skip

    def _vectors(self, found: dict[int, Embedding], rows: int) -> Any:
        """``[rows]`` lists of E numbers, or lists of such lists; the type is the same in each."""
        import numpy as np
        import pyarrow

        spec = self._engine.spec
        dtype = spec.output_dtype
        number = pyarrow.from_numpy_dtype(dtype)
        vector = pyarrow.list_(number, spec.embed_dim)
        if self._running["pool"] != "none":
            values = np.zeros((rows, spec.embed_dim), dtype)
            for place, embedding in found.items():
                values[place] = embedding.values
            missing = pyarrow.array([place not in found for place in range(rows)])
            flat = pyarrow.array(values.reshape(-1), number)
            return pyarrow.FixedSizeListArray.from_arrays(flat, type=vector, mask=missing)
        lengths = [len(found[place].values) if place in found else 0 for place in range(rows)]
        residues = [found[place].values for place in sorted(found)]
        flat_rows = np.concatenate([*residues, np.zeros((0, spec.embed_dim), dtype)], dtype=dtype)
        ends = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        # A null at a start makes that list null.
        missing = [*(place not in found for place in range(rows)), False]
        starts = pyarrow.array(ends, mask=np.array(missing))
        inner = pyarrow.FixedSizeListArray.from_arrays(
            pyarrow.array(flat_rows.reshape(-1), number), type=vector
        )
        return pyarrow.LargeListArray.from_arrays(starts, inner)
