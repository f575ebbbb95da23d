"""Streaming: records in, packs, engine, embeddings out, in input order.

The data's path: ``_next_window`` reads and tokenizes records and packs them, in a thread of its own
while the engine works on the window before; ``_running`` keeps the engine busy with as many packs
at once as it was loaded for, across windows; ``_embed`` runs one pack and pools. Equal proteins of
a window are run once.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.background import in_background
from runtime.bin_packing import even_packs
from runtime.device import default_max_tokens
from runtime.engine import Engine, require_supported
from runtime.errors import InputError, NonFiniteError
from runtime.packing import PackedBatch
from runtime.pooling import Pool, check_pool, residue_rows
from runtime.readers.records import Long, Prepared, Record, RecordOptions, Rejection, prepare
from runtime.results import Embedding as Embedding
from runtime.results import InOrder
from runtime.tokenizer import Unknown
from runtime.windows import Holder, Pack, Task, Values, Window

logger = logging.getLogger(__name__)

# Even packs want many proteins to choose from, and order is restored window by window.
WINDOW_PACKS = 16
WINDOW_PACKS_AT_ONCE = 4
# Of a window's results where pooling is "none": one row for each token. Never less than a pack.
WINDOW_BYTES = 16 << 20
# A window is full a little before its packs are, so that the protein that fills it, and those that
# fit nowhere, do not open a pack of their own.
WINDOW_FILL = 0.975
# Of records that share what is run, such as variants, a window holds so many at most.
WINDOW_RECORDS = 1 << 16


@dataclass
class Totals:
    """What a runner has done so far.

    Attributes:
        proteins, tokens, packs: that were run.
        rejected: records that were left out.
        equal: proteins whose vectors are those of an equal one, and were not computed again.
        found: proteins whose vectors an earlier run kept; those equal to them too.
        lower_case, stops, unknown, cut: proteins in which lower case was taken as upper case, a
            ``*`` at the end removed, characters outside the alphabet replaced, the end cut off.
        in_windows: proteins that were run in windows.
        without_residues: ids of proteins of BOS and EOS alone.
        over_budget: ids of proteins with more tokens than a pack's budget.
    """

    proteins: int = 0
    tokens: int = 0
    packs: int = 0
    rejected: int = 0
    equal: int = 0
    found: int = 0
    lower_case: int = 0
    stops: int = 0
    unknown: int = 0
    cut: int = 0
    in_windows: int = 0
    without_residues: list[str] = field(default_factory=list)
    over_budget: list[str] = field(default_factory=list)


class Kept(Protocol):
    """Vectors of earlier runs, see ``runtime.vector_cache``."""

    def find(self, proteins: list[NDArray[np.int64]]) -> list[Values | None]:
        """Of each protein, by its tokens, what was kept; asked in the thread that reads."""
        ...

    def keep(self, tokens: NDArray[np.int64], values: Values) -> None:
        """Keeps vectors that were computed."""
        ...


class AsyncInferenceRunner:
    """Embeds a stream of proteins; reading, tokenizing and packing overlap with the engine.

    Args:
        engine: from ``runtime.load``.
        max_tokens: budget of a pack; a longer protein gets a pack of its own. None takes 4,096;
            16,384 on a card; 32,768 on one of 40 GB and more, where the artifact was proven with
            packs so large.
        pool: how to pool residues, or ``"none"`` for one vector per residue.
        layer: which exported layer to embed with; None takes the last.
        unknown: what to do with characters outside the alphabet (see ``tokenizer.encode``).
        upper: take lower case as upper case (soft-masked sequences).
        strip_stop: remove a single ``*`` at the end of a sequence.
        on_rejected: gets each record that cannot be tokenized, in the thread that reads, and the
            others go on. None raises InputError at the first, but for those that ``long`` skips.
        max_length: residues of the longest protein; None takes all.
        long: what becomes of longer ones (see ``RecordOptions``).
        kept: vectors of earlier runs; None computes all.
        of_pack: gives each protein's values, in place of pooling ``layer``; they grow with the
            protein where ``pool`` is ``"none"``, and are bounded else.
        rows_of_token: of E numbers that they hold for each token where they grow.
        task: what is run in place of the proteins, and what comes of it; it goes before ``of_pack``
            and what is said of records. Its values are bounded, as those of ``pool="mean"``.

    Attributes:
        totals: what was done so far.
        window_ends: of each window that was read, the row of the input behind its last. Who begins
            at such a row gets the same packs, and the same bits, as who came through it.

    Raises:
        InputError: a layer that the artifact does not export, an unknown pooling or ``unknown``.
    """

    def __init__(
        self,
        engine: Engine,
        max_tokens: int | None = None,
        pool: Pool = "mean",
        layer: int | None = None,
        unknown: Unknown = "error",
        upper: bool = False,
        strip_stop: bool = False,
        on_rejected: Callable[[Rejection], None] | None = None,
        max_length: int | None = None,
        long: Long = "error",
        kept: Kept | None = None,
        of_pack: Callable[[PackedBatch], list[Values]] | None = None,
        rows_of_token: int = 1,
        task: Task | None = None,
    ):
        check_pool(pool)
        if max_tokens is None:
            max_tokens = default_max_tokens(engine.spec)
        if max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, got {max_tokens}")
        if layer is None:
            layer = engine.spec.layers[-1]
        check_layer(layer, engine.spec.layers)
        self.totals = Totals()
        self.window_ends: deque[int] = deque()
        self._engine = engine
        self._max_tokens = max_tokens
        self._pool: Pool = pool
        self._layer = layer
        self._options = RecordOptions(unknown, upper, strip_stop, max_length, long)
        self._on_rejected = on_rejected
        self._kept = kept
        self._of_pack = of_pack if task is None else partial(task.of_pack, engine)
        self._task = task
        self._rows_of_token = rows_of_token
        self._warned = False

    def run(self, records: Iterable[Record], first_row: int = 0) -> Iterator[Embedding]:
        """Yields one embedding for each record, in input order.

        Args:
            records: to run.
            first_row: of the first of them in the input.

        Raises:
            InputError: a record that cannot be tokenized, if there is no ``on_rejected``.
            NonFiniteError: the engine returned NaN or Inf.
            EngineError: the engine failed.
        """
        stream = enumerate(records, first_row)
        workers = ThreadPoolExecutor(self._engine.concurrency, "esm2-engine")
        wait = True
        try:
            yield from self._in_order(self._running(stream, workers))
        except (KeyboardInterrupt, SystemExit):
            wait = False  # the process ends, and a pack may take minutes
            raise
        finally:
            # The reading is not waited for: a pipe may stay silent.
            workers.shutdown(wait=wait, cancel_futures=True)

    def _next_window(self, stream: Iterator[tuple[int, Record]]) -> Window:
        num_records = 0
        holders: dict[bytes, list[Holder]] = {}
        tokens: list[NDArray[np.int64]] = []
        budget = self._window_tokens()
        row = None
        most = WINDOW_RECORDS if self._task else math.inf
        while budget > 0 and num_records < most and (numbered := next(stream, None)) is not None:
            row, record = numbered
            prepared = self._prepare(record)
            if isinstance(prepared, Rejection):
                self._reject(replace(prepared, row=row))
                continue
            runs = prepared.runs
            for number, run in enumerate(runs):
                equal = holders.setdefault(run.tobytes(), [])
                if not equal:
                    tokens.append(run)
                if not equal or self._task is None:
                    budget -= len(run)
                whole = len(prepared.tokens)
                equal.append(Holder(num_records, row, record, whole, number, len(runs)))
            num_records += 1
            self.totals.lower_case += prepared.was_lower
            self.totals.stops += prepared.had_stop
            self.totals.unknown += prepared.had_unknown
            self.totals.cut += prepared.was_cut
            self.totals.in_windows += bool(prepared.windows)
        if row is not None:
            self.window_ends.append(row + 1)
        found = self._find(tokens)
        to_run = [i for i in range(len(tokens)) if i not in found]
        packs = even_packs([len(tokens[i]) for i in to_run], self._max_tokens)
        packs = [[to_run[i] for i in members] for members in packs]
        return Window(num_records, list(holders.values()), tokens, packs, found)

    def _prepare(self, record: Record) -> Prepared | Rejection:
        return self._task.prepare(record) if self._task else prepare(record, self._options)

    def _find(self, tokens: list[NDArray[np.int64]]) -> dict[int, Values]:
        found = self._kept.find(tokens) if self._kept else []
        return {i: values for i, values in enumerate(found) if values is not None}

    def _reject(self, rejection: Rejection) -> None:
        if self._on_rejected is None and not rejection.asked:
            raise InputError(str(rejection))
        self.totals.rejected += 1
        if self._on_rejected is not None:
            self._on_rejected(rejection)

    def _window_tokens(self) -> float:
        packs = max(WINDOW_PACKS, WINDOW_PACKS_AT_ONCE * self._engine.concurrency)
        tokens = WINDOW_FILL * packs * self._max_tokens
        return min(tokens, self._held_tokens()) if self._pool == "none" else tokens

    def _held_tokens(self) -> int:
        """Tokens whose rows take ``WINDOW_BYTES``, at least those of a pack."""
        spec = self._engine.spec
        row_bytes = self._rows_of_token * spec.embed_dim * spec.output_dtype.itemsize
        return max(WINDOW_BYTES // row_bytes, self._max_tokens)

    def _running(
        self, stream: Iterator[tuple[int, Record]], workers: Executor
    ) -> Iterator[tuple[Pack, list[Values]]]:
        """Yields packs in the order in which they were submitted; later ones run meanwhile.

        Of a window those proteins come first that need not be run.
        The next window enters when it is there and this one is submitted, and is waited for only
        when nothing runs: results do not wait for a slow input, nor for an error in it.
        """
        at_once = self._engine.concurrency
        ahead = at_once
        if self._pool == "none":
            ahead = min(ahead, self._held_tokens() // self._max_tokens)
        to_run: deque[Pack] = deque()
        running: deque[tuple[Pack, Future[list[Values]]]] = deque()
        records_before = 0
        upcoming: Future[Window] | None = in_background(self._next_window, stream)
        while upcoming or to_run or running:
            if to_run and len(running) < at_once + ahead:
                pack = to_run.popleft()
                running.append((pack, workers.submit(self._embed, pack.batch())))
            elif upcoming and not to_run and (not running or _is_there(upcoming)):
                window = upcoming.result()
                to_run.extend(window.pack(members, records_before) for members in window.packs)
                found = window.pack(window.found, records_before)
                records_before += window.num_records
                upcoming = in_background(self._next_window, stream) if window.num_records else None
                if window.found:
                    self.totals.found += sum(_proteins(holders) for holders in found.holders)
                    yield found, list(window.found.values())
            else:
                pack, future = running.popleft()
                values = future.result()
                self._account_for_run(pack)
                if self._kept:
                    for tokens, vectors in zip(pack.tokens, values, strict=True):
                        self._kept.keep(tokens, vectors)
                yield pack, values

    def _in_order(self, finished_packs: Iterator[tuple[Pack, list[Values]]]) -> Iterator[Embedding]:
        in_order = InOrder(self._pool, self._task)
        for pack, values in finished_packs:
            self._account_for(pack)
            for embedding in in_order.add(pack, values):
                self.totals.proteins += 1
                yield embedding

    def _embed(self, batch: PackedBatch) -> list[Values]:
        require_supported(self._engine, batch)
        self._warn_beyond_the_proof(batch)
        if self._of_pack is not None:
            return self._of_pack(batch)
        return vectors_of_pack(self._engine, batch, self._layer, self._pool)

    def _warn_beyond_the_proof(self, batch: PackedBatch) -> None:
        spec = self._engine.spec
        if self._warned or spec.domain is None:
            return
        sizes = spec.domain.beyond(batch.max_seqlen, batch.num_tokens, batch.num_proteins)
        if sizes:
            self._warned = True
            logger.warning(
                "engine %r of %s runs beyond what it was compared with fair-esm on: %s. "
                "A smaller --max-tokens keeps packs smaller, 'esm2-export build --longest' proves "
                "longer proteins",
                spec.format, spec.artifact, ", ".join(sizes),
            )  # fmt: skip

    def _account_for(self, pack: Pack) -> None:
        totals = self.totals
        for tokens, holders in zip(pack.tokens, pack.holders, strict=True):
            length = len(tokens)
            totals.tokens += length * len(holders)
            totals.equal += max(0, _proteins(holders) - 1)
            names = [holder.record.id for holder in holders if holder.window == 0]
            totals.without_residues += names if length == 2 else []
            totals.over_budget += names if length > self._max_tokens else []

    def _account_for_run(self, pack: Pack) -> None:
        self.totals.packs += 1
        lengths = [len(tokens) for tokens in pack.tokens]
        logger.debug(
            "pack %d: %d proteins, %d tokens, longest %d, packing efficiency %.1f %%",
            self.totals.packs,
            len(lengths),
            sum(lengths),
            max(lengths),
            100 * sum(lengths) / max(self._max_tokens, sum(lengths)),
        )


def _is_there(upcoming: "Future[Window]") -> bool:
    return upcoming.done() and upcoming.exception() is None


def _proteins(holders: Iterable[Holder]) -> int:
    """Of those that are run in windows the first counts."""
    return sum(holder.window == 0 for holder in holders)


def vectors_of_pack(engine: Engine, batch: PackedBatch, layer: int, how: Pool) -> list[Values]:
    """Runs a pack, and gives ``[E]`` of each protein, or ``[L, E]`` where ``how`` is ``"none"``.

    Raises:
        NonFiniteError: the engine returned NaN or Inf.
        EngineError: the engine failed.
    """
    rows = engine.embed(batch, layer, how)
    check_finite(batch, rows, how)
    if how != "none":
        return list(rows)
    bounds = batch.cu_seqlens.tolist()
    # Copies: a view would keep the whole pack alive for as long as one protein's rows.
    return [
        rows[residue_rows(start, end)].copy()
        for start, end in zip(bounds[:-1], bounds[1:], strict=True)
    ]


def several_of_pack(
    engine: Engine, batch: PackedBatch, wanted: Sequence[tuple[int, Pool]]
) -> list[NDArray[np.floating]]:
    """Runs a pack, and gives an array for each pair ``(layer, how)``, see ``embed_several``.

    Raises:
        NonFiniteError: the engine returned NaN or Inf.
        EngineError: the engine failed.
    """
    found = engine.embed_several(batch, wanted)
    for (_, how), rows in zip(wanted, found, strict=True):
        check_finite(batch, rows, how)
    return found


def check_layer(layer: int, exported: Sequence[int]) -> None:
    """Raises InputError where an artifact does not export it."""
    if layer not in exported:
        raise InputError(
            f"layer {layer} is not in this artifact, it exports {list(exported)}. "
            f"Export it with 'esm2-export build --layers {layer}'"
        )


def check_finite(batch: PackedBatch, rows: NDArray[np.floating], how: Pool) -> None:
    """Raises NonFiniteError naming the proteins of ``batch`` with NaN or Inf.

    Args:
        batch: what was run.
        rows: ``[N, E]``, or ``[T, E]`` where ``how`` is ``"none"``.
        how: the pooling; the mean of no residues is NaN, and no fault.
    """
    finite = np.isfinite(rows).all(axis=1)
    lengths = np.diff(batch.cu_seqlens)
    if how == "mean":
        finite |= lengths == 2
    if finite.all():
        return
    protein_of_row = np.arange(batch.num_proteins)
    if how == "none":
        protein_of_row = np.repeat(protein_of_row, lengths)
    wrong: list[int] = np.unique(protein_of_row[~finite]).tolist()
    named = ", ".join(repr(batch.name(i)) for i in wrong[:5])
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    raise NonFiniteError(
        f"the engine returned NaN or Inf for {len(wrong)} of {batch.num_proteins} proteins in a "
        f"pack: {named}{more}. Half precision may overflow: try a float32 artifact, and "
        "'esm2-export verify' to find a damaged one"
    )
