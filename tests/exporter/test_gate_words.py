"""What the gate says where it cannot compare, and what is published where an engine failed."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from exporter.build import build
from exporter.build_options import BuildOptions
from exporter.cli import main
from exporter.model.reference import Reference, WeightsSource, load_reference
from exporter.parity.answers import Answers
from exporter.parity.gate import judge
from exporter.parity.prove import faults
from exporter.parity.prove.planter import Planter
from exporter.parity.report.html import render
from exporter.parity.report.junit import as_junit
from exporter.parity.report.schema import ParityError, Report, read
from exporter.parity.report.terminal import summary
from exporter.parity.rules.budgets import budgets_for
from exporter.parity.rules.rows import rows_of
from exporter.parity.rules.task import OF_LM_HEAD, Answer, compare_classifications, compare_tasks
from exporter.parity.rules.verdict import Check, _of_rows
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.oracle import run_eager
from exporter.weights.mixture import choose
from exporter.weights.smoothing import NOTHING
from runtime import load
from runtime import manifest as manifests
from runtime.engine import Outputs
from runtime.manifest_schema import EMBEDDING
from runtime.selftest import selftest
from tests.conftest import TINY, MadeOnce, few_packs, save_checkpoint

pytestmark = pytest.mark.slow

RULE = "first choice at confident masked positions, agreement"


def scaled_head(path: Path, scale: float) -> Path:
    """A fair-esm file whose LM head is weak, or of zeros."""
    save_checkpoint(path, TINY)
    contents = torch.load(path, weights_only=False)
    for name, tensor in contents["model"].items():
        if "lm_head" in name and not name.endswith("lm_head.weight"):
            tensor.mul_(scale)
    torch.save(contents, path)
    return path


def options_of(checkpoint: Path, out: Path, *targets: str, **more: Any) -> BuildOptions:
    return BuildOptions(
        WeightsSource("checkpoint", str(checkpoint)), targets, None, "mean", out=out, **more
    )


@pytest.fixture(scope="module")
def weak(made_once: MadeOnce) -> Path:
    return made_once("weak.pt", lambda path: scaled_head(path, 1e-3))


@pytest.fixture(scope="module")
def weak_artifact(weak: Path, made_once: MadeOnce, cache: Cache) -> Path:
    def make(folder: Path) -> None:
        build(options_of(weak, folder, "torchscript"), lambda line: None, cache)

    return made_once("weak", make)


@pytest.fixture
def report(weak_artifact: Path) -> Report:
    return read(weak_artifact / "parity.json")


class TestWeakHead:
    def check(self, report: Report) -> Check:
        return next(c for c in report.engines[0].checks if c.name == RULE)

    def test_an_engine_that_every_other_rule_passes_is_published(self, report: Report) -> None:
        assert report.passed
        check = self.check(report)
        assert not check.passed
        assert not check.failed
        assert "confident at none of" in check.not_compared
        assert "Do not rely on this model's predictions" in check.not_compared

    def test_every_report_says_so(self, report: Report, weak_artifact: Path) -> None:
        why = self.check(report).not_compared
        assert f"  {RULE}: not compared: {why}" in summary(report)
        assert "not compared" in render(report)
        assert "confident at none of" in (weak_artifact / "parity.html").read_text()
        assert f'skipped message="not compared: {why[:30]}' in as_junit(report, [])
        stored = json.loads((weak_artifact / "parity.json").read_text())
        (silent,) = (c for c in stored["engines"][0]["checks"] if c["not_compared"])
        assert silent["not_compared"] == why

    @pytest.mark.parametrize("number", [0, 3, 4, 7])
    def test_faults_are_still_rejected(
        self, weak: Path, weak_artifact: Path, cache: Cache, tmp_path: Path, number: int
    ) -> None:
        reference = load_reference(WeightsSource("checkpoint", str(weak)))
        manifest = manifests.read(weak_artifact)
        planter = Planter(weak_artifact, manifest, reference, tmp_path, cache=cache)
        fault = faults.faults()[number]
        assert planter.verdict(fault, "torchscript").outcome == "rejected", fault.name

    @pytest.mark.parametrize(
        "change",
        [
            lambda logits: None,
            lambda logits: np.full_like(logits, np.nan),
            lambda logits: np.zeros_like(logits),
            lambda logits: logits * 1.001,
        ],
    )
    def test_an_engine_that_is_at_fault_fails(
        self, weak: Path, weak_artifact: Path, cache: Cache, change: Callable[[Any], Any]
    ) -> None:
        reference = load_reference(WeightsSource("checkpoint", str(weak)))
        manifest = manifests.read(weak_artifact)
        packs = few_packs()
        truth, eager = (
            run_eager(reference, packs, (TINY[0],), "mean", dtype, cache)
            for dtype in (torch.float64, torch.float32)
        )
        with load(weak_artifact, "torchscript", "cpu") as engine:
            original = engine.run

            def run(batch: Any) -> Outputs:
                tensors = {**original(batch).tensors}
                logits = change(tensors.pop("logits"))
                return Outputs(tensors if logits is None else {**tensors, "logits": logits})

            engine.run = run  # type: ignore[method-assign]
            judged = judge(engine, weak_artifact, manifest, packs=packs, oracle=truth, eager=eager)
        assert judged.status == "failed"
        assert "logits of pack" in judged.reason


class TestWhatIsNotCompared:
    """A reason lies in the oracle's answers, or it is a failure."""

    def answers(self, logits: Any, confidence: float = 1.0) -> Answer:
        random = np.random.default_rng(0)
        return Answer(np.full(6, 32), logits, confidence * random.standard_normal((3, 8)))

    def rule(self, quantity: str) -> Any:
        return next(b for b in budgets_for("int8", 2) if b.quantity == quantity)

    def test_no_lm_head(self) -> None:
        tasks = compare_tasks([(self.answers(None), self.answers(None))])
        for quantity in OF_LM_HEAD:
            check = _of_rows(self.rule(quantity), [], tasks)
            assert not check.failed
            assert "has no LM head" in check.not_compared
        assert _of_rows(self.rule("label_agreement"), [], tasks).passed

    def test_logits_on_one_side_alone(self) -> None:
        logits = np.random.default_rng(1).standard_normal((6, 33))
        with pytest.raises(ValueError, match="on one side alone"):
            compare_tasks([(self.answers(None), self.answers(logits))])

    def test_a_constant_confidence_of_the_oracle_alone(self) -> None:
        varied = np.random.default_rng(0).standard_normal((5, 8))
        same = np.ones((5, 8))
        assert compare_classifications(varied, same)[1] is None
        assert compare_classifications(same, varied)[1] == 0.0

    def test_what_is_missing_for_no_such_reason_fails(self) -> None:
        logits = np.random.default_rng(1).standard_normal((6, 33)) * 10
        tasks = compare_tasks([(self.answers(logits), self.answers(logits))])
        for quantity in (*OF_LM_HEAD, "label_agreement"):
            silent = msgspec.structs.replace(tasks, **{quantity: None})
            assert _of_rows(self.rule(quantity), [], silent).failed

    def test_constant_scores_of_the_oracle_alone(self) -> None:
        varied = np.random.default_rng(1).standard_normal((6, 33))
        same = np.zeros((6, 33))
        tasks = compare_tasks([(self.answers(varied), self.answers(same))])
        check = _of_rows(self.rule("variants_spearman"), [], tasks)
        assert "every substitution has the same score" in check.not_compared
        tasks = compare_tasks([(self.answers(same), self.answers(varied))])
        assert _of_rows(self.rule("variants_spearman"), [], tasks).failed

    def test_a_model_without_masks_in_its_packs_fails(self) -> None:
        logits = np.random.default_rng(1).standard_normal((6, 33))
        answer = msgspec.structs.replace(self.answers(logits), input_ids=np.full(6, 5))
        check = _of_rows(
            self.rule("top1_agreement_confident"), [], compare_tasks([(answer, answer)])
        )
        assert check.failed


class TestConstantLogits:
    def rows(self, ours: Any, weak_artifact: Path) -> Any:
        manifest = manifests.read(weak_artifact)
        layers, width, _ = TINY
        body = np.random.default_rng(0).standard_normal((6, width))

        def answers(logits: Any, dtype: str) -> dict[str, Any]:
            rows = {"logits": logits, f"representations.{layers}": body.astype(dtype)}
            return {**rows, EMBEDDING: body[:1].astype(dtype)}

        bounds = np.array([0, 6], dtype=np.int32)
        truth, eager = (
            Answers(np.zeros(6), bounds, answers(np.full((6, 33), 0.1, dtype), dtype))
            for dtype in ("float64", "float32")
        )
        got = answers(ours, "float32")
        got["pooled"] = got[EMBEDDING]
        return rows_of("x", got, truth, eager, manifest)

    def test_are_said_to_be_no_measure(self, weak_artifact: Path) -> None:
        rows = self.rows(np.full((6, 33), 0.1, "float32"), weak_artifact)
        assert [r.tensor for r in rows if r.not_compared] == ["logits"]
        assert not any(row.problem for row in rows)

    @pytest.mark.parametrize(
        "ours",
        [
            None,
            np.full((6, 33), np.nan, "float32"),
            np.full((6, 32), 0.1, "float32"),
            np.full((6, 33), 0.1),
            np.full((6, 33), 0.1001, "float32"),
        ],
    )
    def test_a_fault_in_them_still_shows(self, weak_artifact: Path, ours: Any) -> None:
        (row,) = (r for r in self.rows(ours, weak_artifact) if r.tensor == "logits")
        assert row.problem

    def test_a_head_of_zeros_is_published(self, tmp_path: Path, cache: Cache) -> None:
        checkpoint = scaled_head(tmp_path / "zeros.pt", 0.0)
        folder, report = build(
            options_of(checkpoint, tmp_path / "artifact", "torchscript"), lambda line: None, cache
        )
        assert report.passed
        manifest = manifests.read(folder)
        assert "logits" not in manifest.golden.limits
        with load(folder, "torchscript", "cpu") as engine:
            assert selftest(engine, folder, manifest).passed
        assert "one number everywhere" in render(report)


@pytest.fixture(scope="module")
def body(fair_esm_body: Path) -> Reference:
    return load_reference(WeightsSource("checkpoint", str(fair_esm_body)))


@pytest.fixture(scope="module")
def fair_esm_body(made_once: MadeOnce) -> Path:
    """A checkpoint without an LM head."""

    def make(path: Path) -> None:
        save_checkpoint(path, TINY)
        contents = torch.load(path, weights_only=False)
        state = {n: t for n, t in contents["model"].items() if "lm_head" not in n}
        torch.save({**contents, "model": state}, path)

    return made_once("body.pt", make)


@pytest.fixture(scope="module")
def body_artifact(fair_esm_body: Path, made_once: MadeOnce, cache: Cache) -> Path:
    def make(folder: Path) -> None:
        options = options_of(fair_esm_body, folder, "torchscript", "onnx")
        build(options, lambda line: None, cache)

    return made_once("body", make)


class TestWithoutLMHead:
    @pytest.mark.parametrize("engine", ["torchscript", "onnx"])
    def test_engines_give_embeddings_alone(self, body_artifact: Path, engine: str) -> None:
        manifest = manifests.read(body_artifact)
        assert [o.name for o in manifest.signature.outputs] == ["representations.2", "pooled"]
        assert not manifest.weights.lm_head
        with load(body_artifact, engine, "cpu", validate=True) as loaded:
            from runtime.packing import PackedBatch

            outputs = loaded.run(PackedBatch.from_sequences(["MKTAYIAKQR", "MK"]))
        assert outputs.logits is None
        assert list(outputs.tensors) == ["representations.2", "pooled"]

    def test_weights_hold_no_lm_head(self, body_artifact: Path) -> None:
        from runtime.weights import read_places

        assert not [n for n in read_places(body_artifact / "weights.safetensors") if "lm_head" in n]

    @pytest.mark.parametrize("original", [True, False])
    def test_verify_and_info_say_so(
        self, body_artifact: Path, fair_esm_body: Path, original: bool
    ) -> None:
        arguments = ["verify", str(body_artifact), "--engine", "torchscript"]
        arguments += ["--checkpoint", str(fair_esm_body)] if original else []
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        assert "not compared: the checkpoint has no LM head" in done.output
        from runtime.cli import main as run

        said = CliRunner().invoke(run, ["info", str(body_artifact)]).output
        assert "no LM head in this checkpoint: embeddings only, no logits" in said

    def test_an_engine_with_logits_of_its_own_fails(
        self, body: Reference, body_artifact: Path, cache: Cache
    ) -> None:
        manifest, packs = manifests.read(body_artifact), few_packs()
        truth = run_eager(body, packs, (TINY[0],), "mean", torch.float64, cache)
        eager = run_eager(body, packs, (TINY[0],), "mean", torch.float32, cache)
        with load(body_artifact, "torchscript", "cpu") as engine:
            original = engine.run
            engine.run = lambda batch: Outputs(  # type: ignore[method-assign]
                {**original(batch).tensors, "logits": np.zeros((batch.num_tokens, 33), "float32")}
            )
            judged = judge(engine, body_artifact, manifest, packs=packs, oracle=truth, eager=eager)
        assert "eager fair-esm has no such output" in judged.reason


class TestKeepPassed:
    """An int8 engine of weights that int8 does not suit: LayerNorm has outliers, as if trained.

    The function is the same: what the channels gain, the next linears' columns lose. Here they are
    not smoothed, and all linears are in int8.
    """

    @pytest.fixture(autouse=True)
    def _not_smoothed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("exporter.formats.onnx.int8.measure", lambda *_: NOTHING)
        all_in_int8 = partial(choose, budget=9.0)
        monkeypatch.setattr(
            "exporter.formats.onnx.int8.choose", lambda *given: all_in_int8(*given[:3])
        )

    @pytest.fixture(scope="class")
    @classmethod
    def outliers(cls, made_once: MadeOnce) -> Path:
        def make(path: Path) -> None:
            save_checkpoint(path, TINY)
            contents = torch.load(path, weights_only=False)
            readers = {"self_attn_layer_norm": ("q_proj", "k_proj", "v_proj"),
                       "final_layer_norm": ("fc1",)}  # fmt: skip
            # The ONNX exporter drops a bias of zeros, and the int8 target must do without.
            contents["model"]["encoder.sentence_encoder.layers.0.fc1.bias"].zero_()
            for name, tensor in contents["model"].items():
                for norm, linears in readers.items():
                    if f".{norm}." in name:
                        tensor[:4] *= 30
                    elif any(name.endswith(f".{linear}.weight") for linear in linears):
                        tensor[:, :4] /= 30
            torch.save(contents, path)

        return made_once("outliers.pt", make)

    def test_without_it_nothing_is_published_and_it_is_named(
        self, outliers: Path, tmp_path: Path, cache: Cache
    ) -> None:
        options = options_of(outliers, tmp_path / "artifact", "onnx", "onnx-int8")
        with pytest.raises(ParityError, match="--keep-passed publishes onnx without it"):
            build(options, lambda line: None, cache)
        assert not (tmp_path / "artifact").exists()

    def test_with_it_the_others_are_published(self, outliers: Path, tmp_path: Path) -> None:
        out = tmp_path / "artifact"
        arguments = ["build", "--checkpoint", str(outliers), "--target", "onnx,onnx-int8"]
        done = CliRunner().invoke(main, [*arguments, "--keep-passed", "--out", str(out)])
        assert done.exit_code == 1, done.output
        assert "error: left out, for parity failed: onnx-int8; published: onnx." in done.output
        manifest = manifests.read(out)
        assert list(manifest.engines) == list(manifest.parity) == ["onnx"]
        assert not manifest.golden.own_limits
        assert not list(out.glob("*int8*"))
        report = read(out / "parity.json")
        assert {v.engine: v.status for v in report.engines} == {
            "onnx": "passed", "onnx-int8": "failed",
        }  # fmt: skip
        assert not report.passed
        load(out, "onnx", "cpu", validate=True).close()

    def test_nothing_is_published_where_all_fail(
        self, outliers: Path, tmp_path: Path, cache: Cache
    ) -> None:
        options = options_of(outliers, tmp_path / "artifact", "onnx-int8", keep_passed=True)
        with pytest.raises(ParityError, match="Nothing was published$"):
            build(options, lambda line: None, cache)
        assert not (tmp_path / "artifact").exists()
