import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import runtime
from exporter.parity.budgets import budgets_for
from exporter.parity.metrics import compare
from exporter.parity.oracle import run_eager
from exporter.parity.packs import parity_packs
from exporter.parity.verdict import judge
from exporter.weights import Reference
from runtime.engine import Outputs
from runtime.packing import PackedBatch
from runtime.tokenizer import PAD_ID, TOKENS

BOUNDS = np.array([0, 2, 5])


@pytest.fixture(scope="module")
def small_packs() -> dict[str, PackedBatch]:
    return {k: v for k, v in parity_packs().items() if k in ("many masks", "mixed", "one residue")}


@pytest.fixture(scope="module")
def oracle(reference: Reference, small_packs: dict[str, PackedBatch]) -> dict[str, Outputs]:
    return run_eager(reference.model, small_packs, (0, 3, 6), "mean", torch.float64)


@pytest.fixture(scope="module")
def eager(reference: Reference, small_packs: dict[str, PackedBatch]) -> dict[str, Outputs]:
    return run_eager(reference.model, small_packs, (0, 3, 6), "mean", torch.float32)


class TestPacks:
    def test_at_least_ten_and_none_traced(self) -> None:
        from exporter.targets.tracing import tracing_pack

        packs = parity_packs()
        assert len(packs) >= 10
        traced = tracing_pack()[0].numpy()
        assert not any(np.array_equal(batch.input_ids, traced) for batch in packs.values())

    def test_what_the_list_promises(self) -> None:
        packs = parity_packs()
        assert packs["1000 of 12 tokens"].num_proteins == 1000
        assert packs["skewed"].max_seqlen == 1000
        assert packs["beyond 1024"].max_seqlen > 1024
        assert set(packs["every token"].input_ids) == set(range(len(TOKENS))) - {PAD_ID}
        assert packs["one protein"].num_proteins == 1
        assert packs["one residue"].num_tokens == 3

    def test_the_seed_changes_the_random_packs(self) -> None:
        one, two = parity_packs(1)["random 0"], parity_packs(2)["random 0"]
        assert one.num_tokens != two.num_tokens


class TestMetrics:
    def test_exact(self) -> None:
        x = np.random.default_rng(0).standard_normal((5, 4))
        error = compare(x, x, BOUNDS)
        assert error.relative_l2 == error.worst_absolute == 0
        assert error.cosine_p01 == pytest.approx(1)

    def test_names_the_worst_place(self) -> None:
        expected = np.random.default_rng(0).standard_normal((5, 4))
        actual = expected.copy()
        actual[3, 2] += 0.5
        error = compare(actual, expected, BOUNDS)
        assert (error.worst_row, error.worst_column, error.worst_protein) == (3, 2, 1)
        assert error.worst_absolute == pytest.approx(0.5)

    def test_rows_of_zeros_are_equal_to_rows_of_zeros(self) -> None:
        """The embedding of a mask is zero, in the oracle too."""
        x = np.random.default_rng(0).standard_normal((5, 4))
        x[:2] = 0
        error = compare(x, x, BOUNDS)
        assert (error.cosine_p01, error.worst_protein_relative_l2) == (pytest.approx(1), 0)
        wrong = x.copy()
        wrong[0, 0] = 1e-9
        error = compare(wrong, x, BOUNDS)
        assert error.worst_protein_relative_l2 == np.inf

    @pytest.mark.parametrize(
        ("actual", "expected", "message"),
        [
            (np.zeros((0, 4)), np.zeros((0, 4)), "nothing was compared"),
            (np.ones((5, 4)), np.ones((5, 4)), "nothing was compared"),
            (np.ones((4, 4)), np.ones((5, 4)), "shape"),
            (np.full((5, 4), np.nan), np.arange(20.0).reshape(5, 4), "NaN or Inf"),
        ],
    )
    def test_no_verdict_without_evidence(
        self, actual: np.ndarray, expected: np.ndarray, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            compare(actual, expected, BOUNDS)


class TestOracle:
    def test_is_better_than_float32(
        self, oracle: dict[str, Outputs], eager: dict[str, Outputs]
    ) -> None:
        error = compare(eager["mixed"].logits, oracle["mixed"].logits, np.array([0, 10]))
        assert 1e-8 < error.relative_l2 < 1e-6

    def test_takes_its_softmax_in_float64(self, reference: Reference) -> None:
        import esm.multihead_attention

        before = esm.multihead_attention.utils_softmax
        dtypes = []
        original = torch.softmax

        def spy(x: torch.Tensor, dim: int) -> torch.Tensor:
            dtypes.append(x.dtype)
            return original(x, dim)

        torch.softmax = spy  # type: ignore[assignment]
        try:
            pack = {"pack": PackedBatch.from_sequences(["MKT"])}
            run_eager(reference.model, pack, (6,), "mean", torch.float64)
        finally:
            torch.softmax = original
        assert dtypes == [torch.float64] * 6
        assert esm.multihead_attention.utils_softmax is before

    def test_leaves_the_model_as_it_was(self, reference: Reference) -> None:
        before = reference.origin.state_sha256
        from exporter.weights import state_sha256

        assert state_sha256(reference.model) == before

    def test_does_not_reuse_tables_of_another_dtype(self, reference: Reference) -> None:
        """fair-esm keeps cos and sin of the last length, even after .double()."""
        pack = {"pack": PackedBatch.from_sequences(["MKTAYIAKQR"])}
        fresh = copy.deepcopy(reference.model)
        expected = run_eager(fresh, pack, (6,), "mean", torch.float64)["pack"].logits
        used = copy.deepcopy(reference.model)
        run_eager(used, pack, (6,), "mean", torch.float32)
        actual = run_eager(used, pack, (6,), "mean", torch.float64)["pack"].logits
        np.testing.assert_array_equal(actual, expected)


Fault = Callable[[PackedBatch, Outputs], Outputs]


def scaled(batch: PackedBatch, outputs: Outputs) -> Outputs:
    return replace(outputs, logits=outputs.logits * np.float32(1.00001))


def noisy_last_layer(batch: PackedBatch, outputs: Outputs) -> Outputs:
    noise = np.random.default_rng(0).standard_normal(outputs.representations[6].shape)
    layers = {**outputs.representations, 6: outputs.representations[6] + 3e-6 * noise}
    return replace(outputs, representations=layers)


def one_number_not_finite(batch: PackedBatch, outputs: Outputs) -> Outputs:
    logits = outputs.logits.copy()
    logits[1, 1] = np.nan
    return replace(outputs, logits=logits)


def eos_in_the_mean(batch: PackedBatch, outputs: Outputs) -> Outputs:
    last = outputs.representations[6]
    return replace(outputs, pooled=runtime.pool(last, batch.cu_seqlens, "mean-with-eos"))


def a_layer_is_missing(batch: PackedBatch, outputs: Outputs) -> Outputs:
    return replace(outputs, representations={0: outputs.representations[0], 6: outputs.logits})


class FaultyEngine:
    """A real engine whose answers are tampered with."""

    def __init__(self, engine: runtime.Engine, fault: Fault):
        self._engine, self._fault = engine, fault
        self.spec = engine.spec

    def run(self, batch: PackedBatch) -> Outputs:
        return self._fault(batch, self._engine.run(batch))


class TestVerdict:
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, artifact: Path) -> runtime.Engine:
        with runtime.load(artifact, "onnx") as engine:
            yield engine

    def verdict(self, engine, reference, small_packs, oracle, eager):  # type: ignore[no-untyped-def]
        return judge(engine, reference.architecture, small_packs, oracle, eager, "mean")

    def test_a_good_engine_passes(self, engine, reference, small_packs, oracle, eager) -> None:  # type: ignore[no-untyped-def]
        verdict = self.verdict(engine, reference, small_packs, oracle, eager)
        assert verdict.passed
        assert len(verdict.rows) == 3 * 5
        assert verdict.worst_relative_l2 < 2e-6

    @pytest.mark.parametrize(
        ("fault", "tensor"),
        [
            (scaled, "logits"),
            (noisy_last_layer, "representations.6"),
            (one_number_not_finite, "logits"),
            (eos_in_the_mean, "pooled"),
            (a_layer_is_missing, "representations.3"),
        ],
    )
    def test_a_faulty_engine_fails_where_the_fault_is(
        self, engine, reference, small_packs, oracle, eager, fault: Fault, tensor: str
    ) -> None:  # type: ignore[no-untyped-def]
        faulty = FaultyEngine(engine, fault)
        verdict = self.verdict(faulty, reference, small_packs, oracle, eager)
        assert not verdict.passed
        assert tensor in {row.tensor for row in verdict.rows if row.failures}

    def test_nothing_compared_is_no_pass(self, engine, reference) -> None:  # type: ignore[no-untyped-def]
        assert not judge(engine, reference.architecture, {}, {}, {}, "mean").passed


def test_a_dtype_without_a_measured_budget_has_none() -> None:
    with pytest.raises(ValueError, match="no parity budget for float16"):
        budgets_for("float16", 6)


def test_deep_models_have_the_hard_stop() -> None:
    assert [budget.limit for budget in budgets_for("float32", 33)] == [2.0, 2e-5]
    assert [budget.limit for budget in budgets_for("float32", 12)] == [2.0, 2e-6]
