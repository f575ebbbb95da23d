import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import runtime
from exporter.cli import main
from exporter.errors import ExportError
from exporter.model.packed_forward import PackedESM2
from exporter.model.precision import cast_copy
from exporter.model.reference import Reference, WeightsSource, load_reference, state_sha256
from exporter.parity.answers import Answers
from exporter.parity.gate import Gate, judge
from exporter.parity.report import schema as reports
from exporter.parity.report.junit import as_junit
from exporter.parity.rules.budgets import budgets_for
from exporter.parity.rules.metrics import UNBOUNDED, TensorError, compare
from exporter.parity.rules.task import (
    Answer,
    compare_classifications,
    compare_tasks,
    jensen_shannon,
)
from exporter.parity.rules.verdict import (
    EVERYTHING_COMPARED,
    INTERNALS,
    TOKENS,
    Row,
    _of_rows,
)
from exporter.parity.truth import oracle as oracles
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.packs import (
    Pack,
    Protein,
    as_batch,
    large_pack,
    parity_packs,
    with_names,
)
from exporter.parity.verify import verify
from exporter.publish import writable_copy
from runtime import manifest as manifests
from runtime.engine import Outputs
from runtime.files import file_entry
from runtime.manifest_schema import EMBEDDING
from runtime.packing import PackedBatch
from runtime.tokenizer import PAD_ID
from runtime.tokenizer import TOKENS as VOCABULARY
from tests.conftest import LAYERS, TINY, save_checkpoint, stored_artifact

pytestmark = pytest.mark.slow

BOUNDS = np.array([0, 2, 5])


@pytest.fixture(scope="module")
def small_packs() -> dict[str, Pack]:
    return with_names(parity_packs(), ("one residue", "many masks", "mixed"))


@pytest.fixture(scope="module")
def oracle(reference: Reference, small_packs: dict[str, Pack], cache: Cache) -> dict[str, Answers]:
    return run_eager(reference, small_packs, LAYERS, "mean", torch.float64, cache)


@pytest.fixture(scope="module")
def eager(reference: Reference, small_packs: dict[str, Pack], cache: Cache) -> dict[str, Answers]:
    return run_eager(reference, small_packs, LAYERS, "mean", torch.float32, cache)


class TestPacks:
    def test_at_least_ten_and_none_traced(self) -> None:
        from exporter.formats.tracing import tracing_pack

        packs = parity_packs()
        assert len(packs) >= 10
        traced = tracing_pack()[0].numpy()
        assert not any(np.array_equal(as_batch(pack).input_ids, traced) for pack in packs.values())

    def test_what_the_list_promises(self) -> None:
        packs = {name: as_batch(pack) for name, pack in parity_packs().items()}
        assert packs["16384 tokens"].num_tokens == 16_384
        assert packs["16384 tokens"].num_proteins > 1024
        assert packs["4096 tokens"].num_tokens == 4096
        assert packs["4096 tokens"].max_seqlen == 500
        assert packs["beyond 2048"].max_seqlen > 2048
        assert packs["one token alone"].num_tokens == 1
        assert packs["two tokens"].num_tokens == packs["two tokens"].num_proteins == 2
        kept = packs["many masks"], packs["many masks, others"]
        assert np.array_equal(kept[0].cu_seqlens, kept[1].cu_seqlens)
        assert not np.array_equal(kept[0].input_ids, kept[1].input_ids)
        assert set(packs["every token"].input_ids) == set(range(len(VOCABULARY))) - {PAD_ID}
        assert packs["one protein"].num_proteins == 1
        assert packs["one residue"].num_tokens == 3
        assert 1 in np.diff(packs["one token"].cu_seqlens)

    def test_a_large_one(self) -> None:
        pack = large_pack(32_768)
        assert as_batch(pack).num_tokens == 32_768
        assert len(set(pack)) == 126

    def test_the_seed_changes_the_random_packs(self) -> None:
        one, two = parity_packs(1)["random 0"], parity_packs(2)["random 0"]
        assert one != two


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
        assert (error.cosine_min, error.worst_protein_relative_l2) == (pytest.approx(1), 0)
        wrong = x.copy()
        wrong[0, 0] = 1e-9
        error = compare(wrong, x, BOUNDS)
        assert error.worst_protein_relative_l2 == UNBOUNDED

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


class TestTaskMetrics:
    def answer(self, oracle: dict[str, Answers], name: str = "many masks") -> Answer:
        truth = oracle[name]
        return Answer(truth.input_ids, truth.tensors["logits"], truth.tensors[EMBEDDING])

    def test_equal_answers_agree(self, oracle: dict[str, Answers]) -> None:
        same = compare_tasks([(self.answer(oracle), self.answer(oracle))])
        assert same.top1_agreement == same.top1_agreement_confident == same.label_agreement == 1
        assert same.confident_positions > 0
        assert same.jensen_shannon_max == 0
        assert same.confidence_correlation == pytest.approx(1)
        assert same.variants_spearman == pytest.approx(1)
        assert same.perplexity_drift == 0

    def test_other_predictions_disagree(self, oracle: dict[str, Answers]) -> None:
        truth = self.answer(oracle)
        turned = Answer(truth.input_ids, -truth.logits, truth.pooled[::-1])
        other = compare_tasks([(turned, truth)])
        assert other.top1_agreement == 0
        assert other.jensen_shannon_mean > 0.1
        assert other.label_agreement < 1
        assert other.variants_spearman < 0
        assert other.perplexity_drift > 0.1

    def test_copies_of_a_protein_count_once(self) -> None:
        """A pack of a thousand copies, one bit off, does not decide for the others."""
        drawn = np.random.default_rng(0)
        truth = drawn.standard_normal((50, 8))
        given = truth.copy()
        given[0] = -given[0]  # another label for one of 50
        copies = np.r_[np.zeros(950, int), np.arange(50)]
        ids = np.zeros(len(copies), np.int64)
        tasks = compare_tasks(
            [(Answer(ids, None, given[copies]), Answer(ids, None, truth[copies]))]
        )
        assert (tasks.proteins, tasks.label_agreement) == (50, 0.98)

    def test_divergence_is_bounded_by_ln_2(self) -> None:
        one, other = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
        assert jensen_shannon(one, other) == pytest.approx(np.log(2))
        assert jensen_shannon(one, one) == 0


class TestOracle:
    def test_is_better_than_float32(
        self, oracle: dict[str, Answers], eager: dict[str, Answers]
    ) -> None:
        truth, rounded = oracle["mixed"].tensors["logits"], eager["mixed"].tensors["logits"]
        assert 1e-8 < compare(rounded, truth, np.array([0, 10])).relative_l2 < 1e-6

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
            run_eager(reference, {"pack": [Protein("MKT")]}, (6,), "mean", torch.float64)
        finally:
            torch.softmax = original
        assert dtypes == [torch.float64] * 6
        assert esm.multihead_attention.utils_softmax is before

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_leaves_the_model_as_it_was(self, tiny: Reference, dtype: torch.dtype) -> None:
        """Half precision rounds: the model itself must not go through it."""
        run_eager(tiny, {"pack": [Protein("MKT")]}, (2,), "mean", dtype)
        assert state_sha256(tiny.model) == tiny.origin.state_sha256
        assert next(tiny.model.parameters()).dtype == torch.float32

    def test_does_not_reuse_tables_of_another_dtype(self, reference: Reference) -> None:
        """fair-esm keeps cos and sin of the last length, even after .double()."""
        pack = {"pack": [Protein("MKTAYIAKQR")]}

        def logits(of: Reference, dtype: torch.dtype) -> np.ndarray:
            return run_eager(of, pack, (6,), "mean", dtype)["pack"].tensors["logits"]

        expected = logits(replace(reference, model=copy.deepcopy(reference.model)), torch.float64)
        used = replace(reference, model=copy.deepcopy(reference.model))
        logits(used, torch.float32)
        np.testing.assert_array_equal(logits(used, torch.float64), expected)

    def test_tokenizes_and_pools_without_the_runtime(
        self, tiny: Reference, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pack = {"pack": [Protein("MK<mask>T"), Protein("X", bare=True)]}
        expected = run_eager(tiny, pack, (2,), "mean", torch.float64)["pack"]
        for name in ("tokenizer.tokenize", "tokenizer.encode", "pooling.pool"):
            monkeypatch.setattr(f"runtime.{name}", None)
        again = run_eager(tiny, pack, (2,), "mean", torch.float64)["pack"]
        np.testing.assert_array_equal(again.tensors[EMBEDDING], expected.tensors[EMBEDDING])
        assert expected.cu_seqlens.tolist() == [0, 6, 7]

    @pytest.mark.parametrize("how", ["mean", "mean-with-eos", "cls"])
    def test_pools_as_the_runtime_says_it_does(self, tiny: Reference, how: str) -> None:
        pack = {"pack": [Protein("MK<mask>T"), Protein("X", bare=True), Protein("GAV")]}
        answers = run_eager(tiny, pack, (2,), how, torch.float64)["pack"]  # type: ignore[arg-type]
        last = answers.tensors["representations.2"]
        expected = runtime.pool(last, answers.cu_seqlens, how)  # type: ignore[arg-type]
        np.testing.assert_allclose(answers.tensors[EMBEDDING], expected, rtol=1e-14)


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> Reference:
    return load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))


class TestSecondWitness:
    """Hugging Face's own implementation: a misreading that exporter and oracle share would show."""

    def test_transformers_agree_with_the_oracle(
        self, reference: Reference, oracle: dict[str, Answers], small_packs: dict[str, Pack]
    ) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.EsmConfig(
            vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=320,
            num_hidden_layers=6, num_attention_heads=20, intermediate_size=1280,
            position_embedding_type="rotary", token_dropout=True, emb_layer_norm_before=False,
            layer_norm_eps=1e-5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            tie_word_embeddings=True, attn_implementation="eager",
        )  # fmt: skip
        witness = transformers.EsmForMaskedLM(config).eval()
        missing, unexpected = witness.load_state_dict(as_huggingface(reference), strict=False)
        assert not unexpected
        assert all("inv_freq" in n or "contact_head" in n or "decoder" in n for n in missing)
        witness.double()
        for name in small_packs:
            truth = oracle[name]
            bounds = truth.cu_seqlens.tolist()
            for start, end in zip(bounds[:-1], bounds[1:], strict=True):
                tokens = torch.from_numpy(truth.input_ids[start:end])[None]
                with torch.no_grad():
                    logits = witness(tokens, attention_mask=torch.ones_like(tokens)).logits[0]
                expected = truth.tensors["logits"][start:end]
                error = np.linalg.norm(logits.numpy() - expected) / np.linalg.norm(expected)
                # transformers keeps its rotary frequencies, and its angles, in float32.
                assert error < 2e-6, name


def as_huggingface(reference: Reference) -> dict[str, torch.Tensor]:
    """The parameters under transformers' names, written out: not the exporter's own table."""
    state = reference.model.state_dict()
    renamed = {"esm.embeddings.word_embeddings.weight": state["embed_tokens.weight"]}
    parts = {
        "self_attn.q_proj": "attention.self.query",
        "self_attn.k_proj": "attention.self.key",
        "self_attn.v_proj": "attention.self.value",
        "self_attn.out_proj": "attention.output.dense",
        "self_attn_layer_norm": "attention.LayerNorm",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
        "final_layer_norm": "LayerNorm",
    }
    for layer in range(reference.architecture.num_layers):
        for ours, theirs in parts.items():
            for kind in ("weight", "bias"):
                renamed[f"esm.encoder.layer.{layer}.{theirs}.{kind}"] = state[
                    f"layers.{layer}.{ours}.{kind}"
                ]
    for kind in ("weight", "bias"):
        renamed[f"esm.encoder.emb_layer_norm_after.{kind}"] = state[f"emb_layer_norm_after.{kind}"]
        renamed[f"lm_head.dense.{kind}"] = state[f"lm_head.dense.{kind}"]
        renamed[f"lm_head.layer_norm.{kind}"] = state[f"lm_head.layer_norm.{kind}"]
    renamed["lm_head.decoder.weight"] = state["embed_tokens.weight"]
    renamed["lm_head.bias"] = state["lm_head.bias"]
    return renamed


class TestCache:
    @pytest.fixture
    def runs(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Lengths of the proteins that eager fair-esm ran."""
        lengths: list[int] = []
        original = oracles._Eager.run

        def counting(self: oracles._Eager, tokens: np.ndarray) -> object:
            lengths.append(len(tokens))
            return original(self, tokens)

        monkeypatch.setattr(oracles._Eager, "run", counting)
        return lengths

    def test_every_distinct_protein_runs_once(
        self, tiny: Reference, runs: list[int], tmp_path: Path
    ) -> None:
        """The cost of the gate is linear in proteins, and nothing is computed twice."""
        one, other, third = Protein("MKT"), Protein("GAVLI"), Protein("W")
        packs = {"a": [one, other, one], "b": [other, third, one]}
        cache = Cache(tmp_path)
        first = run_eager(tiny, packs, (2,), "mean", torch.float64, cache)
        assert sorted(runs) == [3, 5, 7]
        again = run_eager(tiny, packs, (2,), "mean", torch.float64, cache)
        assert len(runs) == 3
        for name in packs:
            for tensor in ("logits", EMBEDDING):
                one, other = first[name].tensors[tensor], again[name].tensors[tensor]
                np.testing.assert_array_equal(one, other)

    def test_other_weights_layers_and_dtypes_are_other_answers(
        self, tiny: Reference, runs: list[int], tmp_path: Path
    ) -> None:
        packs, cache = {"a": [Protein("MKT")]}, Cache(tmp_path)
        other = load_reference(
            WeightsSource("checkpoint", str(save_checkpoint(tmp_path / "x.pt", TINY, seed=9)))
        )
        run_eager(tiny, packs, (2,), "mean", torch.float64, cache)
        run_eager(other, packs, (2,), "mean", torch.float64, cache)
        run_eager(tiny, packs, (1, 2), "mean", torch.float64, cache)
        run_eager(tiny, packs, (2,), "cls", torch.float64, cache)
        run_eager(tiny, packs, (2,), "mean", torch.float32, cache)
        assert len(runs) == 5

    def test_other_settings_are_other_answers(
        self, tiny: Reference, runs: list[int], tmp_path: Path
    ) -> None:
        """Token dropout is no parameter: the digest of the weights does not know it."""
        packs, cache = {"a": [Protein("M<mask>T")]}, Cache(tmp_path)
        run_eager(tiny, packs, (2,), "mean", torch.float64, cache)
        settings = msgspec.structs.replace(tiny.architecture, token_dropout=False)
        run_eager(replace(tiny, architecture=settings), packs, (2,), "mean", torch.float64, cache)
        assert len(runs) == 2

    def test_a_changed_file_is_not_believed(
        self, tiny: Reference, runs: list[int], tmp_path: Path
    ) -> None:
        packs, cache = {"a": [Protein("MKT")]}, Cache(tmp_path)
        expected = run_eager(tiny, packs, (2,), "mean", torch.float64, cache)["a"].tensors
        (path,) = tmp_path.glob("*.npz")
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **{**arrays, "logits": arrays["logits"] + 1e-6})
        again = run_eager(tiny, packs, (2,), "mean", torch.float64, cache)["a"].tensors
        np.testing.assert_array_equal(again["logits"], expected["logits"])
        path.write_bytes(b"not an archive")
        run_eager(tiny, packs, (2,), "mean", torch.float64, cache)
        assert len(runs) == 3

    def test_the_oldest_go_first(self, tmp_path: Path) -> None:
        import os

        Cache(tmp_path / "one").write("a", {"x": np.zeros(100)})
        size = (tmp_path / "one" / "a.npz").stat().st_size
        cache = Cache(tmp_path, max_bytes=2 * size)
        for age, key in ((300, "a"), (200, "b"), (100, "c")):
            cache.write(key, {"x": np.zeros(100)})
            stamp = (tmp_path / f"{key}.npz").stat().st_mtime - age
            os.utime(tmp_path / f"{key}.npz", (stamp, stamp))
        cache.write("d", {"x": np.zeros(100)})
        assert {path.stem for path in tmp_path.glob("*.npz")} == {"c", "d"}
        assert cache.read("a") is None
        assert cache.read("d") is not None


Fault = Callable[[PackedBatch, Outputs], Outputs]


def changed(outputs: Outputs, **tensors: Any) -> Outputs:
    return Outputs({**outputs.tensors, **tensors})


def scaled(batch: PackedBatch, outputs: Outputs) -> Outputs:
    return changed(outputs, logits=outputs.logits * np.float32(1.00001))


def noisy_last_layer(batch: PackedBatch, outputs: Outputs) -> Outputs:
    noise = np.random.default_rng(0).standard_normal(outputs.representations[6].shape)
    noisy = (outputs.representations[6] + 3e-6 * noise).astype(np.float32)
    return changed(outputs, **{"representations.6": noisy})


def one_number_not_finite(batch: PackedBatch, outputs: Outputs) -> Outputs:
    logits = outputs.logits.copy()
    logits[1, 1] = np.nan
    return changed(outputs, logits=logits)


def eos_in_the_mean(batch: PackedBatch, outputs: Outputs) -> Outputs:
    last = outputs.representations[6]
    return changed(outputs, pooled=runtime.pool(last, batch.cu_seqlens, "mean-with-eos"))


def a_layer_is_missing(batch: PackedBatch, outputs: Outputs) -> Outputs:
    kept = {k: v for k, v in outputs.tensors.items() if k != "representations.3"}
    return Outputs(kept)


def of_another_dtype(batch: PackedBatch, outputs: Outputs) -> Outputs:
    return changed(outputs, logits=outputs.logits.astype(np.float64))


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

    @pytest.fixture
    def verdict(self, artifact, small_packs, oracle, eager):  # type: ignore[no-untyped-def]
        manifest = manifests.read(artifact)
        return lambda engine: judge(
            engine, artifact, manifest, packs=small_packs, oracle=oracle, eager=eager
        )

    def test_a_good_engine_passes(self, engine, verdict) -> None:  # type: ignore[no-untyped-def]
        judged = verdict(engine)
        assert judged.status == "passed"
        assert judged.reason == ""
        # logits, three layers, and pooled by the graph and by the runtime
        assert len(judged.rows) == 3 * 6
        assert judged.worst_relative_l2 < 2e-6
        assert {check.name for check in judged.checks} >= {EVERYTHING_COMPARED, TOKENS, INTERNALS}

    @pytest.mark.parametrize(
        ("fault", "tensor"),
        [
            (scaled, "logits"),
            (noisy_last_layer, "representations.6"),
            (one_number_not_finite, "logits"),
            (eos_in_the_mean, "pooled"),
            (a_layer_is_missing, "representations.3"),
            (of_another_dtype, "logits"),
        ],
    )
    def test_a_faulty_engine_fails_where_the_fault_is(
        self, engine, verdict, fault: Fault, tensor: str
    ) -> None:  # type: ignore[no-untyped-def]
        judged = verdict(FaultyEngine(engine, fault))
        assert judged.status == "failed"
        assert f"{tensor} of pack" in judged.reason

    def test_nothing_compared_is_no_pass(self, engine, artifact: Path) -> None:  # type: ignore[no-untyped-def]
        judged = judge(engine, artifact, manifests.read(artifact), packs={}, oracle={}, eager={})
        assert judged.status == "failed"
        assert "nothing was compared" in judged.reason

    def test_a_gate_without_proteins_is_refused(self, reference: Reference, artifact: Path) -> None:
        manifest = manifests.read(artifact)
        for packs in ({}, {"empty": []}):
            with pytest.raises(ExportError, match="no proteins to compare"):
                Gate.prepare(reference, manifest, packs)


class TestBudgets:
    """Each rule, just beyond its limit and just within it."""

    @pytest.fixture
    def row(self) -> Row:
        error = TensorError(1e-3, 0, 1e-3, 1e-3, 0, 0, 1.0, 1.0)
        return Row(
            pack="pack", tensor="pooled", rows="proteins", longest=10, engine=error, eager=error
        )

    @pytest.mark.parametrize(
        ("quantity", "tensor", "within", "beyond"),
        [
            ("ratio", "logits", {"relative_l2": 1.9e-3}, {"relative_l2": 2.1e-3}),
            (
                "ratio", "logits", {"worst_protein_relative_l2": 1.9e-3},
                {"worst_protein_relative_l2": 2.1e-3},
            ),
            ("absolute_ratio", "pooled", {"worst_absolute": 1.9e-3}, {"worst_absolute": 2.1e-3}),
            ("residue_cosine_p01", "logits", {"cosine_p01": 0.9991}, {"cosine_p01": 0.9989}),
            ("pooled_cosine_min", "pooled", {"cosine_min": 0.9996}, {"cosine_min": 0.9994}),
        ],
    )  # fmt: skip
    def test_of_outputs(
        self, row: Row, quantity: str, tensor: str, within: dict, beyond: dict
    ) -> None:
        (budget,) = (b for b in budgets_for("float16", 6) if b.quantity == quantity)
        for change, passes in ((within, True), (beyond, False)):
            error = msgspec.structs.replace(row.engine, **change)
            rows = "proteins" if tensor == "pooled" else "tokens"
            changed = msgspec.structs.replace(row, tensor=tensor, rows=rows, engine=error)
            # A good output beside it does not make up for a bad one.
            assert _of_rows(budget, [row, changed, row], None).passed == passes

    def test_of_predictions(self, oracle: dict[str, Answers]) -> None:
        (budget,) = (
            b for b in budgets_for("float16", 6) if b.quantity == "top1_agreement_confident"
        )
        truth = oracle["many masks"]
        answer = Answer(truth.input_ids, truth.tensors["logits"], truth.tensors[EMBEDDING])
        tasks = compare_tasks([(answer, answer)])
        assert _of_rows(budget, [], tasks).passed
        for agreement in (0.994, None):
            worse = msgspec.structs.replace(tasks, top1_agreement_confident=agreement)
            assert not _of_rows(budget, [], worse).passed

    def test_what_was_not_compared_did_not_pass(self) -> None:
        for budget in budgets_for("float32", 6):
            assert not _of_rows(budget, [], None).passed


def test_embeddings_that_are_not_finite_do_not_agree() -> None:
    x = np.random.default_rng(0).standard_normal((5, 4))
    with pytest.raises(ValueError, match="NaN or Inf"):
        compare_classifications(np.full_like(x, np.nan), x)


def test_a_dtype_without_a_measured_budget_has_none() -> None:
    with pytest.raises(ValueError, match="no parity budget for float8"):
        budgets_for("float8", 6)


def test_deep_models_have_the_hard_stop() -> None:
    def ceiling(layers: int) -> list[float]:
        return [b.limit for b in budgets_for("float32", layers) if b.quantity == "relative_l2"]

    assert ceiling(33) == [2e-5]
    assert ceiling(12) == [2e-6]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_has_the_relative_rule_and_the_task_rules(dtype: str) -> None:
    limits = {budget.quantity: budget.limit for budget in budgets_for(dtype, 6)}
    assert limits == {
        "ratio": 2.0, "absolute_ratio": 2.0, "residue_cosine_p01": 0.999,
        "pooled_cosine_min": 0.9995, "top1_agreement_confident": 0.995,
    }  # fmt: skip


class TestHalfPrecision:
    def test_rotary_angles_stay_float32(self, reference: Reference) -> None:
        packed = cast_copy(PackedESM2(reference.model).eval(), torch.bfloat16)
        assert packed.embed_tokens.weight.dtype == torch.bfloat16
        assert torch.equal(packed.inv_freq, PackedESM2(reference.model).inv_freq)
        assert reference.model.embed_tokens.weight.dtype == torch.float32

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_build_and_verify(self, tiny_checkpoint: Path, tmp_path: Path, dtype: str) -> None:
        out = tmp_path / dtype
        result = invoke("build", "--checkpoint", tiny_checkpoint, "--dtype", dtype, "--out", out)
        assert result.exit_code == 0, result.output
        report = reports.read(out / "parity.json")
        statuses = {verdict.engine: verdict.status for verdict in report.engines}
        onnx = "passed" if dtype == "float16" else "not measured"
        assert statuses == {"torchscript": "passed", "onnx": onnx}
        assert set(manifests.read(out).parity) == {k for k, v in statuses.items() if v == "passed"}
        # The weights are rounded, so only the checkpoint can say what they were rounded from.
        result = invoke("verify", out)
        assert result.exit_code == 2
        assert "Give the original with --checkpoint" in result.stderr
        result = invoke("verify", out, "--checkpoint", tiny_checkpoint)
        assert result.exit_code == 0, result.output
        assert ("NOT MEASURED" in result.stdout) == (dtype == "bfloat16")

    def test_nothing_is_published_that_could_not_be_measured(
        self, tiny_checkpoint: Path, tmp_path: Path
    ) -> None:
        result = invoke("build", "--checkpoint", tiny_checkpoint, "--dtype", "bfloat16",
                        "--target", "onnx", "--out", tmp_path / "x")  # fmt: skip
        assert result.exit_code == 1
        assert "no engine could be measured here" in result.stderr
        assert list(tmp_path.iterdir()) == []

    def test_overflow_is_named_by_layer(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        contents = torch.load(tiny_checkpoint, weights_only=False)
        name = "encoder.sentence_encoder.layers.1.fc2.bias"
        contents["model"][name][3] = 65504.0
        contents["model"]["encoder.sentence_encoder.layers.0.fc2.bias"][3] = 1000.0
        path = tmp_path / "large.pt"
        torch.save(contents, path)
        result = invoke("build", "--checkpoint", path, "--dtype", "float16", "--target",
                        "torchscript", "--layers", "0,1,2", "--out", tmp_path / "x")  # fmt: skip
        assert result.exit_code == 1
        assert "overflow in layer 2 (protein 0, where layer 1 reached 1e+03" in result.stderr
        assert not (tmp_path / "x").exists()


def invoke(*arguments: object):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def report(tiny: Reference, tiny_artifact: Path, cache: Cache) -> reports.Report:
    return verify(tiny_artifact, manifests.read(tiny_artifact), tiny, cache=cache)


class TestReport:
    def test_is_read_back_as_it_was(self, report: reports.Report, tmp_path: Path) -> None:
        (tmp_path / "parity.json").write_bytes(reports.encode(report))
        assert reports.read(tmp_path / "parity.json") == report
        assert report.passed
        assert report.environment["torch"] == torch.__version__
        assert report.reference["layer_norm"] == "torch.nn.modules.normalization.LayerNorm"

    def test_schema_3_is_read(self, report: reports.Report, tmp_path: Path) -> None:
        fields = json.loads(reports.encode(report))
        (tmp_path / "parity.json").write_text(json.dumps({**fields, "schema_version": 3}))
        assert reports.read(tmp_path / "parity.json") == report

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda fields: fields.update(schema_version=99), "schema version 99, expected 4"),
            (lambda fields: fields.pop("engines"), "is not a parity report"),
            (lambda fields: fields["engines"][0].update(status="fine"), "is not a parity report"),
        ],
    )
    def test_another_schema_is_one_line(
        self, report: reports.Report, tmp_path: Path, change: Callable[[dict], object], message: str
    ) -> None:
        fields = json.loads(reports.encode(report))
        change(fields)
        path = tmp_path / "parity.json"
        path.write_text(json.dumps(fields))
        with pytest.raises(ExportError, match=message):
            reports.read(path)

    def test_one_of_schema_2_is_upgraded(self, tmp_path: Path) -> None:
        older = reports.read(stored_artifact(6, tmp_path) / "parity.json")
        rows = {(row.tensor, row.rows) for row in older.engines[0].rows}
        assert {(EMBEDDING, "proteins"), ("pooled", "proteins"), ("logits", "tokens")} <= rows
        assert reports.grown_errors(older, older) == []

    def test_growth_since_an_older_report(self, report: reports.Report) -> None:
        assert reports.grown_errors(report, report) == []
        older = scaled_errors(report, 1 / 1.6)
        grown = reports.grown_errors(report, older)
        assert len(grown) == sum(len(verdict.rows) for verdict in report.engines)
        assert "1.60 x the" in grown[0]
        assert reports.grown_errors(report, scaled_errors(report, 1 / 1.4)) == []

    def test_what_is_not_compared_any_more_has_grown(self, report: reports.Report) -> None:
        first, *others = report.engines
        gone = msgspec.structs.replace(first, status="not measured", rows=[])
        newer = msgspec.structs.replace(report, engines=[gone, *others])
        grown = reports.grown_errors(newer, report)
        assert len(grown) == len(first.rows)
        assert "not compared now" in grown[0]

    def test_other_weights_are_not_compared(self, report: reports.Report) -> None:
        reference = {**report.reference, "weights digest": "0"}
        with pytest.raises(ExportError, match="other weights"):
            reports.grown_errors(report, msgspec.structs.replace(report, reference=reference))

    def test_reports_of_other_packs_are_not_compared(self, report: reports.Report) -> None:
        other = msgspec.structs.replace(report, seed=1)
        with pytest.raises(ExportError, match="seed 0 instead of 1"):
            reports.grown_errors(report, other)

    def test_junit(self, report: reports.Report) -> None:
        faults = [
            reports.FaultVerdict("a", "graph", "onnx", "rejected"),
            reports.FaultVerdict("b", "graph", "onnx", "accepted"),
            reports.FaultVerdict("c", "graph", "onnx", "hidden", note="numbers"),
            reports.FaultVerdict("d", "loader", reports.EVERY_ENGINE, "not run", note="reason"),
        ]
        root = ElementTree.fromstring(
            as_junit(msgspec.structs.replace(report, faults=faults), ["onnx: x: relative L2 1"])
        )
        counts = {
            suite.get("name"): (suite.get("tests"), suite.get("failures"), suite.get("skipped"))
            for suite in root
        }
        assert counts["planted faults, onnx"] == ("3", "1", "1")
        assert counts["planted faults, every engine"] == ("1", "0", "1")
        assert counts["onnx float32"][1:] == ("0", "0")
        assert counts["growth since the older report"] == ("1", "1", "0")


def scaled_errors(report: reports.Report, factor: float) -> reports.Report:
    def scale(row):  # type: ignore[no-untyped-def]
        error = msgspec.structs.replace(row.engine, relative_l2=row.engine.relative_l2 * factor)
        return msgspec.structs.replace(row, engine=error)

    engines = [
        msgspec.structs.replace(verdict, rows=[scale(row) for row in verdict.rows])
        for verdict in report.engines
    ]
    return msgspec.structs.replace(report, engines=engines)


class TestCommand:
    def test_report_junit_and_growth(self, tiny_artifact: Path, tmp_path: Path) -> None:
        folder, junit = tmp_path / "report", tmp_path / "junit.xml"
        result = invoke("verify", tiny_artifact, "--report", folder, "--junit", junit,
                        "--against", tiny_artifact / "parity.json")  # fmt: skip
        assert result.exit_code == 0, result.output
        assert result.stdout.count("\n") <= 12
        assert reports.read(folder / "parity.json").passed
        assert (folder / "parity.html").stat().st_size > 10_000
        assert ElementTree.parse(junit).getroot().tag == "testsuites"

    def test_errors_that_grew_fail(
        self, report: reports.Report, tiny_artifact: Path, tmp_path: Path
    ) -> None:
        older = tmp_path / "parity.json"
        older.write_bytes(reports.encode(scaled_errors(report, 0.5)))
        result = invoke("verify", tiny_artifact, "--engine", "onnx", "--against", older)
        assert result.exit_code == 2  # the older report holds torchscript too
        assert "no engine 'torchscript'" in result.stderr
        result = invoke("verify", tiny_artifact, "--against", older)
        assert result.exit_code == 1
        assert "grown: " in result.stdout

    def test_own_proteins(self, tiny_artifact: Path, tmp_path: Path) -> None:
        fasta = tmp_path / "mine.fasta"
        fasta.write_text(">a\nMKTAYIAKQR\n>b\nGGAVL\n")
        result = invoke("verify", tiny_artifact, "--engine", "onnx", "--fasta", fasta, "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["packs"]["mine.fasta 1"] == [2, 19]
        fasta.write_text(">a\nmktayiakqr\n>b\nGGAVL*\n>c\nM1\n")
        options = ("--upper", "--strip-stop", "--on-error", "skip", "--json")
        result = invoke("verify", tiny_artifact, "--engine", "onnx", "--fasta", fasta, *options)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["packs"]["mine.fasta 1"] == [2, 19]
        assert "1 records are left out, the first: record 'c'" in result.stderr
        fasta.write_text(">a\nMKT\n>b\n\n")
        result = invoke("verify", tiny_artifact, "--fasta", fasta)
        assert result.exit_code == 2
        assert "protein 2 of mine.fasta has no residues" in result.stderr
        fasta.write_text("")
        result = invoke("verify", tiny_artifact, "--fasta", fasta)
        assert result.exit_code == 2
        assert "is empty: it holds no FASTA record" in result.stderr

    def test_v1_attention(self, tiny_artifact: Path) -> None:
        result = invoke("verify", tiny_artifact, "--v1-attention", "--json")
        assert result.exit_code == 0, result.output
        engines = json.loads(result.stdout)["engines"]
        assert all(engine["attention"].startswith("standard") for engine in engines)

    def test_weights_with_nan_are_refused(self, tiny_artifact: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        broken = tmp_path / "broken"
        writable_copy(tiny_artifact, broken)
        path = broken / "weights.safetensors"
        state = load_file(path)
        state["layers.0.fc1.weight"][0, 0] = torch.nan
        save_file(state, path)
        manifest = manifests.read(broken, check_files=False)
        files = {**manifest.files, path.name: file_entry(path)}
        manifests.write(msgspec.structs.replace(manifest, files=files), broken)
        result = invoke("verify", broken)
        assert result.exit_code == 2
        assert "holds NaN or Inf" in result.stderr
        assert result.stderr.count("\n") == 1
        path.unlink()
        result = invoke("verify", broken)
        assert result.exit_code == 2
        assert "weights.safetensors is missing" in result.stderr
