import logging
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import runtime
from runtime.pooling import Pool
from runtime.runner import WINDOW_FILL, WINDOW_PACKS, Record
from tests.conftest import random_sequence


@pytest.fixture(scope="module")
def engine(artifact: Path) -> runtime.Engine:
    with runtime.load(artifact, "onnx") as engine:
        yield engine


@pytest.fixture(scope="module")
def records() -> list[Record]:
    random = np.random.default_rng(3)
    lengths = random.integers(1, 90, 60)
    return [Record(f"p{i}", random_sequence(random, int(n))) for i, n in enumerate(lengths)]


def distinct(number: int, length: int) -> str:
    """Residues that no other number has: equal proteins are run once."""
    return random_sequence(np.random.default_rng(number), length)


def alone(engine: runtime.Engine, record: Record) -> np.ndarray:
    batch = runtime.PackedBatch.from_sequences([record.sequence])
    return engine.run(batch).representations[2]


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("max_tokens", [20, 150, 100_000])
def test_results_come_in_input_order(
    artifact: Path, records: list[Record], max_tokens: int, concurrency: int
) -> None:
    with runtime.load(artifact, "onnx", threads=3, concurrency=concurrency) as engine:
        check_order(engine, records, max_tokens)


def check_order(engine: runtime.Engine, records: list[Record], max_tokens: int) -> None:
    results = list(runtime.AsyncInferenceRunner(engine, max_tokens).run(records))
    assert [result.id for result in results] == [record.id for record in records]
    for record, result in zip(records[::7], results[::7], strict=True):
        expected = alone(engine, record)[1:-1].mean(axis=0)
        np.testing.assert_allclose(result.values, expected, atol=2e-5)
        assert result.num_tokens == len(record.sequence) + 2


def test_without_pooling_one_vector_per_residue(
    engine: runtime.Engine, records: list[Record]
) -> None:
    runner = runtime.AsyncInferenceRunner(engine, 200, pool="none", layer=2)
    for record, result in zip(records[:9], runner.run(records[:9]), strict=True):
        assert result.values.shape == (len(record.sequence), 48)
        np.testing.assert_allclose(result.values, alone(engine, record)[1:-1], atol=2e-5)


def test_another_layer(engine: runtime.Engine) -> None:
    (result,) = runtime.AsyncInferenceRunner(engine, layer=1).run([Record("a", "MKT")])
    batch = runtime.PackedBatch.from_sequences(["MKT"])
    expected = engine.run(batch).representations[1][1:-1].mean(axis=0)
    np.testing.assert_allclose(result.values, expected, atol=1e-5)


def test_a_layer_that_was_not_exported(engine: runtime.Engine) -> None:
    with pytest.raises(runtime.InputError, match=r"layer 5 .* exports \[0, 1, 2\].* --layers 5"):
        runtime.AsyncInferenceRunner(engine, layer=5)


def test_no_records(engine: runtime.Engine) -> None:
    assert list(runtime.AsyncInferenceRunner(engine).run([])) == []


def test_over_budget_and_empty_are_kept_and_counted(engine: runtime.Engine) -> None:
    runner = runtime.AsyncInferenceRunner(engine, max_tokens=10)
    proteins = [Record("empty", ""), Record("long", "M" * 30), Record("short", "MK")]
    results = list(runner.run(proteins))
    assert [result.id for result in results] == ["empty", "long", "short"]
    assert np.isnan(results[0].values).all()
    assert np.isfinite(results[1].values).all()
    assert runner.totals.without_residues == ["empty"]
    assert runner.totals.over_budget == ["long"]
    assert (runner.totals.proteins, runner.totals.tokens) == (3, 2 + 32 + 4)


class TestBeyondTheProof:
    def test_it_is_said_once(
        self, engine: runtime.Engine, records: list[Record], caplog: pytest.LogCaptureFixture
    ) -> None:
        domain = engine.spec.domain
        assert domain is not None
        long = Record("long", "M" * domain.longest)
        with caplog.at_level(logging.WARNING, "runtime"):
            runner = runtime.AsyncInferenceRunner(engine, 100)
            assert len(list(runner.run([*records, long, long]))) == len(records) + 2
        (said,) = caplog.messages
        assert f"{domain.longest + 2:,} tokens of a protein (proven: {domain.longest:,})" in said
        assert "--longest" in said

    def test_nothing_is_said_within_it_or_where_it_is_unknown(
        self, engine: runtime.Engine, records: list[Record], caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, "runtime"):
            list(runtime.AsyncInferenceRunner(engine, 100).run(records))
            unknown = _OfUnknownDomain(engine)
            long = Record("long", "M" * engine.spec.domain.longest)
            list(runtime.AsyncInferenceRunner(unknown, 100).run([long]))
        assert not caplog.messages


class _OfUnknownDomain:
    """An artifact of before."""

    def __init__(self, engine: runtime.Engine):
        self._engine = engine
        self.spec = replace(engine.spec, domain=None)

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)


def test_the_debug_line(engine: runtime.Engine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "runtime"):
        list(
            runtime.AsyncInferenceRunner(engine, 20).run([Record("a", "MKT"), Record("b", "MKTAY")])
        )
    assert caplog.messages == [
        "pack 1: 2 proteins, 12 tokens, longest 7, packing efficiency 60.0 %"
    ]


def test_reading_runs_ahead_of_the_engine_but_not_away(engine: runtime.Engine) -> None:
    """The next window is read while the engine works on this one, and no more than that."""
    read = 0
    threads = set()

    def endless() -> Iterator[Record]:
        nonlocal read
        while True:
            read += 1
            threads.add(threading.current_thread().name)
            yield Record(str(read), distinct(read, 5))

    runner = runtime.AsyncInferenceRunner(engine, max_tokens=70)
    results = runner.run(endless())
    next(results)
    window = math.ceil(WINDOW_FILL * WINDOW_PACKS * 10)
    assert window <= read <= 2 * window
    assert threading.current_thread().name not in threads
    results.close()


@pytest.mark.parametrize("end", ["close", "error"])
def test_a_silent_input_does_not_hold_up_the_end(engine: runtime.Engine, end: str) -> None:
    released = threading.Event()

    def silent_after_the_first_window() -> Iterator[Record]:
        for i in range(WINDOW_PACKS * 10):
            yield Record(str(i), "MKTAY")
        released.wait(timeout=60)

    poisoned = Poisoned(engine, "0") if end == "error" else engine
    results = runtime.AsyncInferenceRunner(poisoned, 70).run(silent_after_the_first_window())
    started = time.perf_counter()
    if end == "error":
        with pytest.raises(runtime.NonFiniteError):
            next(results)
    else:
        next(results)
        results.close()
    assert time.perf_counter() - started < 20
    released.set()


def test_an_error_in_the_input_reaches_the_caller(engine: runtime.Engine) -> None:
    runner = runtime.AsyncInferenceRunner(engine)
    with pytest.raises(runtime.InputError, match="record 'bad': character 'J' at position 2"):
        list(runner.run([Record("good", "MKT"), Record("bad", "MJT")]))


def test_bad_records_are_left_out_and_told(engine: runtime.Engine) -> None:
    rejected: list[runtime.Rejection] = []
    runner = runtime.AsyncInferenceRunner(
        engine, 20, upper=True, strip_stop=True, on_rejected=rejected.append
    )
    proteins = [Record("bad", "M1T"), Record("a", "mkt"), Record("worse", "M*T"), Record("b", "M*")]
    assert [result.id for result in runner.run(proteins)] == ["a", "b"]
    assert [(r.record, r.position) for r in rejected] == [("bad", 2), ("worse", 2)]
    totals = runner.totals
    assert (totals.proteins, totals.rejected, totals.lower_case, totals.stops) == (2, 2, 1, 1)


def test_wrong_options_are_no_guess(engine: runtime.Engine) -> None:
    with pytest.raises(runtime.InputError, match="unknown must be one of error, x, unk, got 'X'"):
        runtime.AsyncInferenceRunner(engine, unknown="X")
    with pytest.raises(runtime.InputError, match="pool must be one of .*, got 'max'"):
        runtime.AsyncInferenceRunner(engine, pool="max")


class Poisoned:
    """A real engine that returns a NaN in one protein's rows."""

    def __init__(self, engine: runtime.Engine, name: str):
        self.engine, self.name_of_poisoned = engine, name
        self.spec, self.concurrency = engine.spec, 2

    def unsupported_reasons(self, batch: runtime.PackedBatch) -> list[str]:
        return []

    def embed(self, batch: runtime.PackedBatch, layer: int, how: Pool) -> NDArray[np.floating]:
        rows = self.engine.embed(batch, layer, "none").copy()
        if self.name_of_poisoned in batch.names:
            rows[batch.cu_seqlens[batch.names.index(self.name_of_poisoned)] + 1, 4] = np.nan
        return rows if how == "none" else runtime.pool(rows, batch.cu_seqlens, how)


def test_windows_of_a_stream_fill_their_packs(engine: runtime.Engine) -> None:
    """The last pack of each window could be nearly empty: 0.944 with windows of 16 full packs."""

    class Counting(Poisoned):
        def embed(self, batch: runtime.PackedBatch, *_: object) -> NDArray[np.floating]:
            return np.zeros((batch.num_proteins, 1), dtype=np.float32)

    random = np.random.default_rng(5)
    lengths = np.exp(random.normal(np.log(280), 0.6, 2000)).clip(20, 1022).astype(int)
    runner = runtime.AsyncInferenceRunner(Counting(engine, ""), max_tokens=4096)
    results = runner.run(Record(str(i), "M" * n) for i, n in enumerate(lengths.tolist()))
    assert [result.id for result in results] == [str(i) for i in range(2000)]
    totals = runner.totals
    assert totals.tokens == (lengths + 2).sum()
    assert totals.tokens / (totals.packs * 4096) >= 0.97


@pytest.mark.parametrize(("device", "budget"), [("cpu", 4096), ("cuda", 16384), ("cuda:1", 16384)])
def test_packs_are_larger_on_a_card(engine: runtime.Engine, device: str, budget: int) -> None:
    sizes = []

    class Noting(Poisoned):
        def embed(self, batch: runtime.PackedBatch, *_: object) -> NDArray[np.floating]:
            sizes.append(batch.num_tokens)
            return np.zeros((batch.num_proteins, 1), dtype=np.float32)

    noting = Noting(engine, "")
    noting.spec = replace(engine.spec, device=device)
    runner = runtime.AsyncInferenceRunner(noting)
    assert len(list(runner.run(Record(str(i), distinct(i, 62)) for i in range(512)))) == 512
    assert max(sizes) <= budget < 2 * max(sizes)


@pytest.mark.parametrize("how", ["mean", "mean-with-eos", "none"])
def test_nan_stops_it_and_names_the_protein(engine: runtime.Engine, how: Pool) -> None:
    runner = runtime.AsyncInferenceRunner(Poisoned(engine, "b"), pool=how)
    proteins = [Record("a", "MKT"), Record("b", "MK"), Record("empty", "")]
    with pytest.raises(runtime.NonFiniteError, match="1 of 3 proteins in a pack: 'b'"):
        list(runner.run(proteins))


def test_what_an_engine_does_not_support_is_said(engine: runtime.Engine) -> None:
    poisoned = Poisoned(engine, "a")
    poisoned.unsupported_reasons = lambda batch: ["too long", "too odd"]  # type: ignore[method-assign]
    with pytest.raises(runtime.EngineError, match="cannot run this pack: too long; too odd"):
        list(runtime.AsyncInferenceRunner(poisoned).run([Record("a", "MKT")]))


def test_packs_of_the_next_window_run_beside_the_last_of_this_one(engine: runtime.Engine) -> None:
    """Between windows all cores but one waited for the last pack."""
    first_of_next = threading.Event()
    in_window = WINDOW_PACKS  # of one protein each

    class Waiting(Poisoned):
        def embed(self, batch: runtime.PackedBatch, layer: int, how: Pool) -> NDArray[np.floating]:
            if int(batch.names[0]) >= in_window:
                first_of_next.set()
            elif batch.names[0] == str(in_window - 1):
                assert first_of_next.wait(timeout=20)
            return super().embed(batch, layer, how)

    runner = runtime.AsyncInferenceRunner(Waiting(engine, ""), max_tokens=10)
    records = [Record(str(i), "MKTAYIAK") for i in range(2 * in_window)]
    assert [result.id for result in runner.run(records)] == [record.id for record in records]


@pytest.mark.parametrize("how", ["mean", "none"])
def test_what_is_held_is_bounded(engine: runtime.Engine, how: Pool) -> None:
    """A slow reader of results stops the engine, and with it the reading."""
    embedded = 0

    class Counting(Poisoned):
        def embed(self, batch: runtime.PackedBatch, *_: object) -> NDArray[np.floating]:
            nonlocal embedded
            embedded += 1
            return np.zeros((batch.num_tokens if how == "none" else 1, 1), dtype=np.float32)

    counting = Counting(engine, "")
    counting.spec = replace(engine.spec, embed_dim=1 << 19)  # 8 tokens fill WINDOW_BYTES
    runner = runtime.AsyncInferenceRunner(counting, max_tokens=10, pool=how)
    read = 0

    def endless() -> Iterator[Record]:
        nonlocal read
        while True:
            read += 1
            yield Record(str(read), distinct(read, 8))

    results = runner.run(endless())
    for _ in range(20):
        next(results)
    time.sleep(0.2)
    at_once = counting.concurrency
    assert embedded <= 20 + 2 * at_once
    assert read <= (30 if how == "none" else 3 * WINDOW_PACKS)
    results.close()


def test_packs_are_full_however_much_a_row_takes(engine: runtime.Engine) -> None:
    sizes = []

    class Counting(Poisoned):
        def embed(self, batch: runtime.PackedBatch, *_: object) -> NDArray[np.floating]:
            sizes.append(batch.num_tokens)
            return np.zeros((batch.num_tokens, 1), dtype=np.float32)

    counting = Counting(engine, "")
    counting.spec = replace(engine.spec, embed_dim=1 << 21)  # 2 tokens fill WINDOW_BYTES
    runner = runtime.AsyncInferenceRunner(counting, max_tokens=30, pool="none")
    assert len(list(runner.run(Record(str(i), distinct(i, 8)) for i in range(6)))) == 6
    assert sizes == [30, 30]


def test_results_do_not_wait_for_a_silent_input(engine: runtime.Engine) -> None:
    released = threading.Event()

    def silent_after_the_first_window() -> Iterator[Record]:
        for i in range(WINDOW_PACKS):
            yield Record(str(i), "MKTAYIAK")
        released.wait(timeout=60)

    results = runtime.AsyncInferenceRunner(Poisoned(engine, ""), 10).run(
        silent_after_the_first_window()
    )
    assert [next(results).id for _ in range(WINDOW_PACKS)] == [str(i) for i in range(WINDOW_PACKS)]
    released.set()
    assert not list(results)


def test_results_before_an_error_in_the_input_are_kept(engine: runtime.Engine) -> None:
    records = [Record(str(i), "MKTAYIAK") for i in range(WINDOW_PACKS)] + [Record("bad", "MJT")]
    results = runtime.AsyncInferenceRunner(Poisoned(engine, ""), 10).run(records)
    assert [next(results).id for _ in range(WINDOW_PACKS)] == [str(i) for i in range(WINDOW_PACKS)]
    with pytest.raises(runtime.InputError, match="'bad'"):
        next(results)


def test_as_many_packs_at_once_as_the_engine_takes(engine: runtime.Engine) -> None:
    """Two runs wait for each other: one after the other, they would wait for ever."""
    together = threading.Barrier(2, timeout=20)

    class Waiting(Poisoned):
        def embed(self, batch: runtime.PackedBatch, layer: int, how: Pool) -> NDArray[np.floating]:
            together.wait()
            return super().embed(batch, layer, how)

    runner = runtime.AsyncInferenceRunner(Waiting(engine, ""), max_tokens=10)
    results = list(runner.run([Record(str(i), distinct(i, 8)) for i in range(4)]))
    assert [result.id for result in results] == ["0", "1", "2", "3"]
    assert runner.totals.packs == 4


def test_equal_proteins_are_run_once(engine: runtime.Engine) -> None:
    packs = []

    class Noting(Poisoned):
        def embed(self, batch: runtime.PackedBatch, layer: int, how: Pool) -> NDArray[np.floating]:
            packs.append(batch.num_proteins)
            return super().embed(batch, layer, how)

    runner = runtime.AsyncInferenceRunner(Noting(engine, ""), max_tokens=1000, upper=True)
    sequences = ["MKT", "GGAVL", "mkt", "MKT", "W", "", "GGAVL", ""]
    results = list(runner.run([Record(f"p{i}", each) for i, each in enumerate(sequences)]))
    assert [(each.id, each.row) for each in results] == [(f"p{i}", i) for i in range(8)]
    assert packs == [4]
    for i, j in ((0, 2), (0, 3), (1, 6)):
        assert np.array_equal(results[i].values, results[j].values)
        assert results[i].num_tokens == results[j].num_tokens
    assert not np.shares_memory(results[0].values, results[3].values)
    assert not np.array_equal(results[0].values, results[4].values)
    totals = runner.totals
    assert (totals.proteins, totals.equal, totals.tokens) == (8, 4, 3 * 5 + 2 * 7 + 3 + 2 * 2)
    assert totals.without_residues == ["p5", "p7"]
