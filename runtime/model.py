"""Sequences in, vectors out: an engine with all that its users would write around it.

>>> model = load_model("artifacts/esm2_t6_8M_UR50D-synthetic")
>>> model.embed(["MKTAYIAKQR", "GGAVL"]).shape
(2, 320)
"""

import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from numpy.typing import NDArray

from runtime.attention import Attention
from runtime.bin_packing import even_packs
from runtime.concurrency import Packing, Stream, choose_packing
from runtime.device import default_max_tokens
from runtime.engine import Engine
from runtime.engines.table import FORMATS
from runtime.errors import EngineError, InputError
from runtime.lm_head import check_lm_head, logits_of
from runtime.loading import load
from runtime.packing import PackedBatch
from runtime.pooling import Pool
from runtime.readers.records import RecordOptions, Rejection, prepare
from runtime.runner import AsyncInferenceRunner, Embedding
from runtime.sequences import Many, One, records_of, stream_of
from runtime.threads import Threads, at_least_1, usable_memory
from runtime.tokenizer import Unknown
from runtime.trust.whom import Trust

if TYPE_CHECKING:
    from runtime.manifest_schema import Manifest
    from runtime.predict.scores import Prediction

PerProtein = Literal["mean", "mean-with-eos", "cls"]
Floats = NDArray[np.float32]

_WIDTH = 100  # of what is printed of a model, in characters


class Model:
    """An artifact, loaded. Models are context managers; they may be used by one thread at a time.

    One protein gets all cores, and of many each gets its own: where an engine for CPUs can run
    several packs at once, it is loaded a second time when there are many proteins for the first
    time, with weights of its own. ``concurrency`` of ``load`` fixes it, and loads one.

    Attributes:
        engine: runs packs: ``model.engine.run(PackedBatch.from_sequences(sequences))``.
        manifest: what the artifact says of itself.
    """

    engine: Engine

    def __init__(
        self, manifest: "Manifest", load_engine: Callable[[int], Engine], max_tokens: int | None,
        threads: int, concurrency: int | None,
    ):  # fmt: skip
        self.manifest = manifest
        self._load_engine = load_engine
        self._threads = threads
        self.engine = load_engine(1 if concurrency is None else concurrency)
        spec = self.engine.spec
        self._max_tokens = max_tokens or default_max_tokens(spec)
        can_share = spec.device == "cpu" and FORMATS[spec.format].shares_cores
        # Of many proteins; 1 where an engine that shares the cores is never wanted.
        self._at_once = 1
        if can_share and concurrency is None:
            self._at_once = self._packing(Stream()).concurrency
        self._shared: Engine | None = None
        self._is_closed = False

    @overload  # a string is an iterable of strings, too: what comes first counts
    def embed(  # type: ignore[overload-overlap]
        self, sequences: One, pool: Pool | None = ..., layer: int | None = ..., *,
        unknown: Unknown = ..., upper: bool = ..., strip_stop: bool = ...,
    ) -> Floats: ...  # fmt: skip

    @overload
    def embed(
        self, sequences: Many, pool: PerProtein = ..., layer: int | None = ..., *,
        unknown: Unknown = ..., upper: bool = ..., strip_stop: bool = ...,
    ) -> Floats: ...  # fmt: skip

    @overload
    def embed(
        self, sequences: Many, pool: Literal["none"] | None, layer: int | None = ..., *,
        unknown: Unknown = ..., upper: bool = ..., strip_stop: bool = ...,
    ) -> list[Floats]: ...  # fmt: skip

    def embed(
        self, sequences: One | Many, pool: Pool | None = "mean", layer: int | None = None, *,
        unknown: Unknown = "error", upper: bool = False, strip_stop: bool = False,
    ) -> Floats | list[Floats]:  # fmt: skip
        """Embeds proteins; all results are held in memory (see ``stream``).

        Args:
            sequences: one sequence or record; or many in any iterable: sequences, pairs
                ``(id, sequence)``, records, or a mapping from ids to sequences.
            pool: ``"mean"`` over residues, ``"mean-with-eos"``, ``"cls"``, or None for one vector
                per residue. The mean of a protein without residues is NaN.
            layer: an exported layer; None takes the last.
            unknown: what to do with characters outside the alphabet: ``"error"``, ``"x"`` or
                ``"unk"`` (see ``tokenizer.encode``).
            upper: take lower case as upper case.
            strip_stop: remove a single ``*`` at the end of a sequence.

        Returns:
            ``[N, E]`` float32 in the order of ``sequences``, or N arrays ``[L, E]`` where ``pool``
            is None. Of one sequence ``[E]`` or ``[L, E]``.

        Raises:
            InputError: a sequence that cannot be tokenized, a layer that is not exported, a
                ``pool`` that is none.
            NonFiniteError: the engine returned NaN or Inf.
            EngineError: the engine failed, or the model is closed.
        """
        found = self.stream(
            sequences, pool, layer, unknown=unknown, upper=upper, strip_stop=strip_stop
        )
        values = [np.asarray(embedding.values, np.float32) for embedding in found]
        if isinstance(sequences, One):
            return values[0]
        if pool in (None, "none"):
            return values
        return np.stack(values) if values else np.empty((0, self.engine.spec.embed_dim), np.float32)

    def stream(
        self,
        sequences: One | Many,
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
            upper: as in ``embed``.
            strip_stop: as in ``embed``.
            on_rejected: gets each record that cannot be tokenized, and the others go on; None
                raises at the first.

        Yields:
            One ``Embedding`` for each, in order: ``id``, ``values``, ``num_tokens``.

        Raises:
            InputError: as ``embed``, unless ``on_rejected`` takes it.
            NonFiniteError: as ``embed``.
            EngineError: as ``embed``.
        """
        engine, max_tokens = self._engine_for(sequences)
        runner = AsyncInferenceRunner(
            engine, max_tokens, pool or "none", layer, unknown, upper, strip_stop, on_rejected
        )
        return runner.run(records_of(sequences))

    @overload
    def logits(  # type: ignore[overload-overlap]
        self, sequences: One, *, unknown: Unknown = ..., upper: bool = ..., strip_stop: bool = ...
    ) -> Floats: ...

    @overload
    def logits(
        self, sequences: Many, *, unknown: Unknown = ..., upper: bool = ..., strip_stop: bool = ...
    ) -> list[Floats]: ...

    def logits(
        self, sequences: One | Many, *, unknown: Unknown = "error", upper: bool = False,
        strip_stop: bool = False,
    ) -> Floats | list[Floats]:  # fmt: skip
        """The LM head's scores of every token, such as of what stands in place of ``<mask>``.

        Args:
            sequences: as in ``embed``; inline tokens such as ``<mask>`` among residues.
            unknown: as in ``embed``.
            upper: as in ``embed``.
            strip_stop: as in ``embed``.

        Returns:
            N arrays ``[L + 2, 33]`` float32, rows for BOS and EOS included, columns in the order of
            ``runtime.tokenizer.TOKENS``; of one sequence its array.

        Raises:
            UnsupportedError: the checkpoint had no LM head.
            InputError: a sequence that cannot be tokenized.
            NonFiniteError: the engine returned NaN or Inf.
            EngineError: the engine failed, or the model is closed.
        """
        check_lm_head(self.manifest)
        options = RecordOptions(unknown, upper, strip_stop)
        names, tokens = [], []
        for record in records_of(sequences):
            prepared = prepare(record, options)
            if isinstance(prepared, Rejection):
                raise InputError(str(prepared))
            names.append(record.id)
            tokens.append(prepared.tokens)
        found: list[Floats] = [np.empty((0, 0), np.float32)] * len(tokens)
        for members in even_packs([len(protein) for protein in tokens], self._max_tokens):
            batch = PackedBatch.from_tokens(
                [tokens[i] for i in members], [names[i] for i in members]
            )
            logits = np.asarray(logits_of(self.engine, batch), np.float32)
            for place, rows in zip(members, np.split(logits, batch.cu_seqlens[1:-1]), strict=True):
                found[place] = rows.copy()
        return found[0] if isinstance(sequences, One) else found

    def score(
        self, wild_type: str, variants: Iterable[str] | None = None,
        convention: str = "masked-marginals", *, offset: int = 1,
    ) -> NDArray[np.float64]:  # fmt: skip
        """How likely substitutions are, by ``runtime.variants.conventions``; higher is likelier.

        Args:
            wild_type: residues.
            variants: such as ``A12G`` or ``A12G:S45T``; None takes all single substitutions.
            convention: ``"masked-marginals"``, ``"wt-marginals"`` or ``"pseudo-ppl"``.
            offset: number of the first residue.

        Returns:
            ``[N]`` float64 in the order of ``variants``. Of all single ones ``[L, 20]``, columns in
            the order of ``runtime.lm_head.AMINO_ACIDS``, the wild type's own score where nothing
            changes.

        Raises:
            InputError: variants that cannot be scored, all of them; otherwise as ``logits``.
        """
        from runtime.variants.of_model import scores

        return scores(self.manifest, self._engine_for, wild_type, variants, convention, offset)

    def perplexity(
        self, sequences: One | Many, *, unknown: Unknown = "error", upper: bool = False,
        strip_stop: bool = False,
    ) -> NDArray[np.float64]:  # fmt: skip
        """Pseudo-perplexities: each residue is masked once, see ``runtime.variants.conventions``.

        Arguments and errors are those of ``logits``, but for inline tokens, which are refused.

        Returns:
            ``[N]`` float64, also of one sequence.
        """
        from runtime.variants.of_model import perplexities

        options = RecordOptions(unknown, upper, strip_stop)
        return perplexities(self.manifest, self._engine_for, list(records_of(sequences)), options)

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, sequences: One, *, unknown: Unknown = ..., upper: bool = ..., strip_stop: bool = ...
    ) -> "Prediction": ...

    @overload
    def predict(
        self, sequences: Many, *, unknown: Unknown = ..., upper: bool = ..., strip_stop: bool = ...
    ) -> "list[Prediction]": ...

    def predict(
        self, sequences: One | Many, *, unknown: Unknown = "error", upper: bool = False,
        strip_stop: bool = False,
    ) -> "Prediction | list[Prediction]":  # fmt: skip
        """Labels with probabilities, or values, by the head that was trained on top of the model.

        Args:
            sequences: as in ``embed``.
            unknown: as in ``embed``.
            upper: as in ``embed``.
            strip_stop: as in ``embed``.

        Returns:
            One ``Prediction`` for each, in order; of one sequence its prediction.

        Raises:
            UnsupportedError: the artifact has no head.
            InputError: a sequence that cannot be tokenized.
            NonFiniteError: the engine returned NaN or Inf.
            EngineError: the engine failed, or the model is closed.
        """
        from runtime.predict.scores import head_of
        from runtime.predict.stream import predicting_runner, prediction_of

        head, options = head_of(self.manifest), RecordOptions(unknown, upper, strip_stop)
        engine, max_tokens = self._engine_for(sequences)
        runner = predicting_runner(engine, head, max_tokens, options)
        found = [prediction_of(each, head) for each in runner.run(records_of(sequences))]
        return found[0] if isinstance(sequences, One) else found

    @overload
    def contacts(  # type: ignore[overload-overlap]
        self, sequences: One, *, unknown: Unknown = ..., upper: bool = ..., strip_stop: bool = ...
    ) -> Floats: ...

    @overload
    def contacts(
        self, sequences: Many, *, unknown: Unknown = ..., upper: bool = ..., strip_stop: bool = ...
    ) -> list[Floats]: ...

    def contacts(
        self, sequences: One | Many, *, unknown: Unknown = "error", upper: bool = False,
        strip_stop: bool = False,
    ) -> Floats | list[Floats]:  # fmt: skip
        """Probabilities that residues touch, by fair-esm's contact head.

        Arguments and errors are those of ``predict``.

        Returns:
            N arrays ``[L, L]`` float32, symmetric; of one sequence its array.

        Raises:
            UnsupportedError: the artifact gives no contacts.
        """
        from runtime.contacts.stream import contacts_runner
        from runtime.pairs import as_map, check_contacts

        check_contacts(self.manifest)
        engine, max_tokens = self._engine_for(sequences)
        runner = contacts_runner(engine, max_tokens, RecordOptions(unknown, upper, strip_stop))
        found = [as_map(each.values) for each in runner.run(records_of(sequences))]
        return found[0] if isinstance(sequences, One) else found

    def close(self) -> None:
        """Frees the weights."""
        self._is_closed = True
        self.engine.close()
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *error: object) -> None:
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
        shown = [
            textwrap.fill(
                str(text), _WIDTH, initial_indent=f"  {name:<13}", subsequent_indent=15 * " ",
                break_long_words=False, break_on_hyphens=False,
            )
            for name, text in lines.items()
            if text
        ]  # fmt: skip
        return "\n".join([f"Model {spec.artifact}", *shown])

    def _engine_for(self, work: One | Many | Stream) -> tuple[Engine, int]:
        """The engine for so much work, and the budget of a pack."""
        if self._is_closed:
            raise EngineError("this model is closed: load it again")
        if self._at_once == 1:
            return self.engine, self._max_tokens
        packing = self._packing(work if isinstance(work, Stream) else stream_of(work))
        # Packs that are too few for the cores, or too uneven, get all of them one by one.
        if 2 * packing.concurrency <= self._at_once:
            return self.engine, self._max_tokens
        if self._shared is None:
            self._shared = self._load_engine(self._at_once)
        return self._shared, packing.max_tokens

    def _packing(self, stream: Stream) -> Packing:
        embed_dim, memory = self.engine.spec.embed_dim, usable_memory()
        return choose_packing(self._threads, self._max_tokens, embed_dim, stream, memory)


def load_model(
    artifact: str | os.PathLike[str],
    *,
    engine: str = "auto",
    device: str = "auto",
    max_tokens: int | None = None,
    threads: int | None = None,
    concurrency: int | None = None,
    attention: Attention | None = None,
    tf32: bool = False,
    cuda_graphs: bool = False,
    check_files: bool = True,
    validate: bool = False,
    trust: Trust | None = None,
) -> Model:
    """Loads a model from an artifact; printing it says what runs, and why nothing faster.

    Args:
        artifact: the folder that ``esm2-export build`` wrote.
        engine: a format such as ``"onnx"``, or ``"auto"``: the fastest that runs here.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` for another card, or ``"auto"``: cuda where one
            of the engines runs there.
        max_tokens: budget of a pack; a longer protein gets a pack of its own. None takes 4,096;
            16,384 on a card; 32,768 on one of 40 GB and more, where the artifact was proven with
            packs so large.
        threads: CPU threads; None takes ``OMP_NUM_THREADS``, else every core that may be used.
        concurrency: packs at once on a CPU; None chooses by the proteins, cores and memory.
        attention: ``"auto"``, the fastest kernel; ``"standard"``, the reference's arithmetic; or a
            kernel's name (see ``runtime.load``).
        tf32: on CUDA, round float32 products to TF32: fast, and not exact.
        cuda_graphs: on CUDA, replay captured graphs for packs of at most 4,096 tokens.
        check_files: compare the SHA-256 of the files that the engine reads with the manifest.
        validate: compare every file, and run the artifact's golden proteins.
        trust: a file with a public key in PEM, or with certificates: only what its owner signed is
            loaded. None takes ``ESM2_TRUSTED_KEY``, and without that trusts everybody.

    Raises:
        ArtifactError: the artifact is missing, damaged, cannot be read, or is not signed by whom is
            trusted.
        UnsupportedError: nothing of what was asked for runs here; says of every candidate why.
        EngineError: an argument is wrong, or the engine cannot be loaded.
        InputError: a number that must be at least 1 is not.
    """
    from runtime import manifest as manifests

    if max_tokens is not None:
        at_least_1("max_tokens", max_tokens)
    total = Threads.resolve(threads, 1 if concurrency is None else concurrency).total
    folder = Path(artifact).resolve()
    manifest = manifests.read(folder, check_files=False, trust=trust)

    def load_engine(at_once: int) -> Engine:
        if manifests.read(folder, check_files=False, trust=trust) != manifest:
            raise EngineError(f"artifact {folder} was replaced: load the model again")
        return load_from(folder, concurrency=at_once)

    load_from = partial(
        load, engine=engine, device=device, attention=attention, threads=threads, tf32=tf32,
        cuda_graphs=cuda_graphs, check_files=check_files, validate=validate, trust=trust,
    )  # fmt: skip
    return Model(manifest, load_engine, max_tokens, total, concurrency)


def _layers(layers: Sequence[int]) -> str:
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
