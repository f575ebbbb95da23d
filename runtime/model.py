"""Sequences in, vectors out: an engine with all that its users would write around it.

>>> model = load_model("artifacts/esm2_t6_8M_UR50D-synthetic")
>>> model.embed(["MKTAYIAKQR", "GGAVL"]).shape
(2, 320)
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.attention import Attention
from runtime.bin_packing import even_packs
from runtime.concurrency import Stream, choose_packing
from runtime.engine import Engine
from runtime.errors import InputError, UnsupportedError
from runtime.loading import load
from runtime.packing import PackedBatch
from runtime.pooling import Pool
from runtime.readers.records import Record, Rejection
from runtime.runner import AsyncInferenceRunner, Embedding
from runtime.threads import Threads, usable_memory
from runtime.tokenizer import Unknown, tokenize

if TYPE_CHECKING:
    from runtime.manifest import Manifest

Sequences = str | Iterable[str | tuple[str, str] | Record]
"""One sequence, or many: each alone, with an id before it, or as a record."""

Floats = NDArray[np.float32]


class Model:
    """An artifact, loaded. Models are context managers, and belong to one thread at a time.

    Where an engine for CPUs can run several packs at once, it is loaded for one protein alone, and
    again when there are many: packs share the cores, and one protein should have them all.

    Attributes:
        engine: runs packs: ``model.engine.run(PackedBatch.from_sequences(sequences))``.
        manifest: what the artifact says of itself.
    """

    engine: Engine

    def __init__(
        self, manifest: "Manifest", load_engine: Callable[[int], Engine], max_tokens: int,
        threads: int, concurrency: int | None,
    ):  # fmt: skip
        if max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, got {max_tokens}")
        self.manifest = manifest
        self._load_engine = load_engine
        self._max_tokens = max_tokens
        self._threads = threads
        self._chooses = concurrency is None
        self.engine = load_engine(concurrency or 1)

    def embed(
        self,
        sequences: Sequences,
        pool: Pool | None = "mean",
        layer: int | None = None,
        *,
        unknown: Unknown = "error",
    ) -> Floats | list[Floats]:
        """Embeds proteins; all results are held in memory (see ``stream``).

        Args:
            sequences: one, or many in any iterable.
            pool: ``"mean"`` over residues, ``"mean-with-eos"``, ``"cls"``, or None for one vector
                per residue.
            layer: an exported layer; None takes the last.
            unknown: what to do with characters outside the alphabet (see ``tokenizer.encode``).

        Returns:
            ``[N, E]`` float32 in the order of ``sequences``, or N arrays ``[L, E]`` where ``pool``
            is None. Of one sequence ``[E]`` or ``[L, E]``.

        Raises:
            InputError: a sequence that cannot be tokenized, a layer that is not exported, a
                ``pool`` that is none.
            EngineError: the engine failed, or returned NaN or Inf.
        """
        is_one = isinstance(sequences, str)
        found = self.stream(sequences, pool, layer, unknown=unknown)
        values = [np.asarray(embedding.values, np.float32) for embedding in found]
        if is_one:
            return values[0]
        if pool in (None, "none"):
            return values
        return np.stack(values) if values else np.empty((0, self.engine.spec.embed_dim), np.float32)

    def stream(
        self,
        sequences: Sequences,
        pool: Pool | None = "mean",
        layer: int | None = None,
        *,
        unknown: Unknown = "error",
        upper: bool = False,
        strip_stop: bool = False,
        on_rejected: Callable[[Rejection], None] | None = None,
    ) -> Iterator[Embedding]:
        """Embeds any number of proteins in memory that does not grow with them.

        Args:
            sequences: such as ``read_fasta`` gives; read while the engine works.
            pool: as in ``embed``.
            layer: as in ``embed``.
            unknown: as in ``embed``.
            upper: take lower case as upper case.
            strip_stop: remove a single ``*`` at the end of a sequence.
            on_rejected: gets each record that cannot be tokenized, and the others go on; None
                raises at the first.

        Yields:
            One ``Embedding`` for each, in order: ``id``, ``values``, ``num_tokens``.

        Raises:
            InputError: as ``embed``, unless ``on_rejected`` takes it.
            EngineError: as ``embed``.
        """
        engine, max_tokens = self._ready_for(sequences)
        runner = AsyncInferenceRunner(
            engine, max_tokens, pool or "none", layer, unknown, upper, strip_stop, on_rejected
        )
        return runner.run(_records(sequences))

    def logits(self, sequences: Sequences, *, unknown: Unknown = "error") -> Floats | list[Floats]:
        """The LM head's scores of every token, such as of what stands in place of ``<mask>``.

        Args:
            sequences: as in ``embed``; inline tokens such as ``<mask>`` among residues.
            unknown: as in ``embed``.

        Returns:
            N arrays ``[L + 2, 33]`` float32, rows for BOS and EOS included, columns in the order of
            ``runtime.tokenizer.TOKENS``; of one sequence its array.

        Raises:
            UnsupportedError: the checkpoint had no LM head.
            InputError: a sequence that cannot be tokenized.
            EngineError: the engine failed.
        """
        if not self.manifest.weights.lm_head:
            raise UnsupportedError(
                f"artifact {self.manifest.name!r} gives no logits: its checkpoint had no LM head. "
                "Build it from a masked language model's checkpoint"
            )
        records = list(_records(sequences))
        tokens = [tokenize(record.sequence, record.id, unknown) for record in records]
        found: list[Floats] = [np.empty((0, 33), np.float32)] * len(tokens)
        for members in even_packs([len(protein) for protein in tokens], self._max_tokens):
            batch = PackedBatch.from_tokens([tokens[i] for i in members])
            logits = np.asarray(self.engine.run(batch).logits, np.float32)
            for place, rows in zip(members, np.split(logits, batch.cu_seqlens[1:-1]), strict=True):
                found[place] = rows.copy()
        return found[0] if isinstance(sequences, str) else found

    def close(self) -> None:
        """Frees the weights."""
        self.engine.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        spec = self.engine.spec
        parity = self.manifest.parity.get(spec.format)
        lines = {
            "engine": f"{spec.format} ({spec.library}) on {spec.device}, {spec.dtype}",
            "attention": spec.attention,
            "passed over": "; ".join(filter(None, (*spec.passed_over, spec.attention_reason))),
            "embeddings": f"{spec.embed_dim} wide, of {_layers(spec.layers)}",
            "parity": parity
            and f"relative L2 at most {parity.worst_relative_l2:.1e} from eager fair-esm in "
            f"float64, {parity.worst_ratio_to_eager:.2f} x eager's own error, {parity.packs} packs",
            "warning": spec.synthetic and "the weights are random, embeddings mean nothing",
        }
        shown = [f"  {name:<12}{text}" for name, text in lines.items() if text]
        return "\n".join([f"Model {spec.artifact}", *shown])

    def _ready_for(self, sequences: Sequences) -> tuple[Engine, int]:
        """The engine and the budget of a pack for so much work."""
        if not self._chooses:
            return self.engine, self._max_tokens
        embed_dim, memory = self.engine.spec.embed_dim, usable_memory()
        stream = _stream_of(sequences)
        packing = choose_packing(self._threads, self._max_tokens, embed_dim, stream, memory)
        if (packing.concurrency > 1) != (self.engine.concurrency > 1):
            self.engine.close()
            self.engine = self._load_engine(packing.concurrency)
            # It takes one pack at a time whatever is asked for.
            self._chooses = self.engine.concurrency == packing.concurrency
        # Smaller packs are for engines that share their cores among them.
        shares = self.engine.concurrency > 1
        return self.engine, packing.max_tokens if shares else self._max_tokens


def load_model(
    artifact: str | os.PathLike[str],
    *,
    engine: str = "auto",
    device: str = "auto",
    max_tokens: int = 4096,
    threads: int | None = None,
    concurrency: int | None = None,
    attention: Attention | None = None,
    tf32: bool = False,
    cuda_graphs: bool = False,
    check_files: bool = True,
    validate: bool = False,
) -> Model:
    """Loads a model from an artifact; printing it says what runs, and why nothing faster.

    Args:
        artifact: the folder that ``esm2-export build`` wrote.
        engine: a format such as ``"onnx"``, or ``"auto"``: the fastest that runs here.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``: cuda where one of the engines runs there.
        max_tokens: budget of a pack; a longer protein gets a pack of its own.
        threads: CPU threads; None takes ``OMP_NUM_THREADS``, else every core that may be used.
        concurrency: packs at once on a CPU; None chooses by the proteins, cores and memory.
        attention: ``"auto"``, the fastest kernel; ``"standard"``, the reference's arithmetic; or a
            kernel's name (see ``runtime.load``).
        tf32: on CUDA, round float32 products to TF32: fast, and not exact.
        cuda_graphs: on CUDA, replay captured graphs for packs of at most 4,096 tokens.
        check_files: compare the SHA-256 of the files that the engine reads with the manifest.
        validate: compare every file, and run the artifact's golden proteins.

    Raises:
        ArtifactError: the artifact is missing, damaged, or cannot be read.
        UnsupportedError: nothing of what was asked for runs here; says of every candidate why.
        EngineError: an argument is wrong, or the engine cannot be loaded.
        InputError: a number that must be at least 1 is not.
    """
    from runtime import manifest as manifests

    load_engine = partial(
        load, artifact, engine, device, attention, threads, tf32=tf32, cuda_graphs=cuda_graphs,
        check_files=check_files, validate=validate,
    )  # fmt: skip
    total = Threads.resolve(threads, 1).total
    manifest = manifests.read(Path(artifact), check_files=False)
    return Model(manifest, load_engine, max_tokens, total, concurrency)


def _records(sequences: Sequences) -> Iterator[Record]:
    given = [sequences] if isinstance(sequences, str) else sequences
    for number, one in enumerate(given):
        match one:
            case Record():
                yield one
            case str():
                yield Record(str(number), one)
            case (str(name), str(sequence)):
                yield Record(name, sequence)
            case _:
                raise InputError(
                    f"protein {number} must be a string, a pair (id, sequence) or a Record, got "
                    f"{type(one).__name__}"
                )


def _stream_of(sequences: Sequences) -> Stream:
    """What is known of them before they are run."""
    if isinstance(sequences, str):
        sequences = [sequences]
    if not isinstance(sequences, Sequence):
        return Stream()
    # BOS and EOS; inline tokens such as <mask> make it too many, which does no harm.
    lengths = [len(record.sequence) + 2 for record in _records(sequences)]
    return Stream(len(lengths), sum(lengths), max(lengths, default=0))


def _layers(layers: Sequence[int]) -> str:
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
