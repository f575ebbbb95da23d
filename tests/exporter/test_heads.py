"""Fine-tuned classifiers, exported, gated, and served: their labels are transformers' own."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import esm2_engines as esm2
from exporter.build import build
from exporter.build_options import BuildOptions
from exporter.cli import main
from exporter.errors import CheckpointError, ExportError
from exporter.formats.tensorrt.graph import lower
from exporter.model.packed_forward import PackedESM2
from exporter.model.reference import WeightsSource, load_original, load_reference
from exporter.model.sources.probe import ProbeSource
from exporter.parity.gate import Gate
from exporter.parity.prove.head_faults import head_faults
from exporter.parity.prove.planter import Planter
from exporter.parity.rules.verdict import EngineVerdict
from exporter.parity.truth import heads
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.oracle import run_eager
from runtime import manifest as manifests
from runtime.predict.scores import scores_of
from tests.conftest import few_packs
from tests.exporter.fine_tuned import LABELS, asked, drawn, fine_tuned, proteins, with_lora

pytestmark = pytest.mark.slow
pytest.importorskip("transformers", reason="trains what is exported")
pytest.importorskip("peft", reason="trains LoRA")

TARGETS = ("torchscript", "onnx")


def built(source: WeightsSource, folder: Path, cache: Cache, **options: Any) -> Path:
    targets = options.pop("targets", TARGETS)
    build(BuildOptions(source, targets, out=folder, **options), lambda line: None, cache)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("hf") / "classifier"
    return fine_tuned(folder), folder


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("lora")
    return with_lora(folder), folder / "adapter"


@pytest.fixture(scope="module")
def artifact(classifier: tuple[Any, Path], tmp_path_factory: Any, cache: Cache) -> Path:
    source = WeightsSource("checkpoint", str(classifier[1]))
    return built(source, tmp_path_factory.mktemp("artifacts") / "classifier", cache)


@pytest.fixture(scope="module")
def lora_artifact(lora: tuple[Any, Path], tmp_path_factory: Any, cache: Cache) -> Path:
    source = WeightsSource("checkpoint", str(lora[1]))
    return built(source, tmp_path_factory.mktemp("artifacts") / "lora", cache)


def copy(classifier: tuple[Any, Path], folder: Path) -> Path:
    return Path(shutil.copytree(classifier[1], folder / "copy"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(source: WeightsSource) -> str:
    with pytest.raises(CheckpointError) as error:
        load_reference(source)
    assert "\n" not in str(error.value)
    return str(error.value)


class TestServed:
    @pytest.mark.parametrize("engine", TARGETS)
    @pytest.mark.parametrize("made", ["classifier", "lora"])
    def test_labels_are_transformers_own(
        self, request: pytest.FixtureRequest, made: str, engine: str
    ) -> None:
        theirs, _ = request.getfixturevalue(made)
        folder = request.getfixturevalue("artifact" if made == "classifier" else "lora_artifact")
        sequences = proteins(200, seed=5)
        logits = np.stack(asked(theirs, sequences))
        assert len(np.unique(logits.argmax(1))) > 1  # else a constant would pass
        with esm2.load(folder, engine=engine) as model:
            found = model.predict(sequences)
        assert [each.label for each in found] == [LABELS[i] for i in logits.argmax(1)]
        scores = np.stack([each.scores for each in found])
        np.testing.assert_allclose(
            scores, scores_of(logits, "single_label_classification"), atol=1e-5
        )

    def test_residues_each_label_alone(self, tmp_path: Path, cache: Cache) -> None:
        theirs = drawn(
            "EsmForTokenClassification", num_labels=2, problem_type="multi_label_classification"
        ).eval()
        theirs.save_pretrained(tmp_path / "hf")
        source = WeightsSource("checkpoint", str(tmp_path / "hf"))
        folder = built(source, tmp_path / "artifact", cache, pool="mean", targets=("onnx",))
        (sequence,) = proteins(1, seed=3)
        (logits,) = asked(theirs, [sequence])
        with esm2.load(folder) as model:
            found = model.predict(sequence)
        expected = 1 / (1 + np.exp(-logits[1:-1].astype(np.float64)))
        np.testing.assert_allclose(found.scores, expected, atol=1e-5)
        assert found.label == [
            [f"LABEL_{i}" for i in np.flatnonzero(row >= 0.5)] for row in expected
        ]

    def test_a_value_in_the_other_formats(self, tmp_path: Path, cache: Cache) -> None:
        theirs = drawn("EsmForSequenceClassification", num_labels=1, problem_type="regression")
        theirs.eval().save_pretrained(tmp_path / "hf")
        source = WeightsSource("checkpoint", str(tmp_path / "hf"))
        targets = ("onnx-int8", "aoti")
        folder = built(source, tmp_path / "artifact", cache, targets=targets)
        sequences = proteins(3, seed=3)
        expected = np.stack(asked(theirs, sequences))
        for engine in targets:
            with esm2.load(folder, engine=engine) as model:
                found = np.stack([each.scores for each in model.predict(sequences)])
            error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            assert error < (0.1 if engine == "onnx-int8" else 1e-5), engine

    def test_half_precision(
        self, classifier: tuple[Any, Path], tmp_path: Path, cache: Cache
    ) -> None:
        source = WeightsSource("checkpoint", str(classifier[1]))
        only = {"targets": ("torchscript",), "dtype": "bfloat16"}
        folder = built(source, tmp_path / "artifact", cache, **only)
        sequences = proteins(20, seed=5)
        expected = scores_of(np.stack(asked(classifier[0], sequences)), "")
        with esm2.load(folder) as model:
            found = np.stack([each.scores for each in model.predict(sequences)])
        assert np.abs(found - expected).max() < 0.05

    def test_the_manifest_says_what_there_is(self, artifact: Path, lora_artifact: Path) -> None:
        head = manifests.read(artifact).head
        assert head is not None and head.labels == LABELS
        assert (head.kind, head.rows) == ("sequence_classification", "proteins")
        adapter = manifests.read(lora_artifact).weights.adapter
        assert adapter is not None and (adapter.rank, adapter.alpha) == (4, 16)
        assert "esm.encoder.layer.*.attention.self.query" in adapter.targets
        assert adapter.replaced == ["classifier"]


class TestGate:
    def test_transformers_vouches_for_fair_esm(
        self, classifier: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reference = load_reference(WeightsSource("checkpoint", str(classifier[1])))
        packs = {"mixed": few_packs()["mixed"]}
        truth = run_eager(reference, packs, (2,), "mean", torch.float64)["mixed"]
        alone = run_eager(reference, packs, (2,), "mean", torch.float32)["mixed"]
        assert truth.tensors["head"].dtype == np.float64
        np.testing.assert_allclose(alone.tensors["head"], truth.tensors["head"], atol=1e-4)
        # As transformers has it: rotary in float32.
        monkeypatch.setattr(heads, "_in_float64", lambda: torch.no_grad())
        with pytest.raises(ExportError, match="gives other representations than fair-esm"):
            run_eager(reference, packs, (2,), "mean", torch.float64)

    def test_faults_of_a_head_are_rejected(
        self, artifact: Path, tmp_path: Path, cache: Cache
    ) -> None:
        manifest = manifests.read(artifact)
        reference = load_original(artifact, manifest, None)
        planter = Planter(artifact, manifest, reference, tmp_path, cache=cache)
        for fault in head_faults():
            found = planter.verdict(fault, "torchscript")
            if "probe" in fault.name:
                assert found.outcome == "does not apply"
                continue
            assert found.outcome == "rejected"
            rules = " ".join(found.rules)
            assert "head: worst error of a pack" in rules, found
            assert found.margin is not None and found.margin > 1000

    def test_an_artifact_is_verified_by_itself(self, artifact: Path, cache: Cache) -> None:
        manifest = manifests.read(artifact)
        reference = load_original(artifact, manifest, None)
        gate = Gate.prepare(reference, manifest, few_packs(), cache)
        verdict: EngineVerdict = gate.judge(artifact, manifest, "torchscript")
        assert verdict.status == "passed"
        assert {row.tensor for row in verdict.rows} >= {"head", "embedding"}

    def test_other_labels_are_another_head(
        self, classifier: tuple[Any, Path], artifact: Path, tmp_path: Path
    ) -> None:
        folder = copy(classifier, tmp_path)
        edit_config(folder, id2label={"0": "a", "1": "b", "2": "c"})
        with pytest.raises(CheckpointError, match="its head is"):
            load_original(artifact, manifests.read(artifact), str(folder))


class TestRefused:
    def edit_state(self, folder: Path, change: Any) -> WeightsSource:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, {"format": "pt"})
        return WeightsSource("checkpoint", str(folder))

    def test_a_convolution_would_mix_proteins(
        self, classifier: tuple[Any, Path], tmp_path: Path
    ) -> None:
        folder = copy(classifier, tmp_path)
        source = self.edit_state(
            folder, lambda state: {**state, "classifier.conv.weight": torch.ones(8, 48, 3)}
        )
        message = refused(source)
        assert "classifier.conv.weight [8, 48, 3]" in message
        assert "such a head would mix proteins" in message

    def test_another_width(self, classifier: tuple[Any, Path], tmp_path: Path) -> None:
        def narrower(state: Any) -> Any:
            return {**state, "classifier.out_proj.weight": torch.ones(3, 48)}

        message = refused(self.edit_state(copy(classifier, tmp_path), narrower))
        assert "does not fit a model of width 320 and 3 labels" in message
        assert "out_proj.weight is [3, 48] instead of [3, 320]" in message

    def test_without_its_weights(self, classifier: tuple[Any, Path], tmp_path: Path) -> None:
        def without(state: Any) -> Any:
            return {name: x for name, x in state.items() if not name.startswith("classifier")}

        source = self.edit_state(copy(classifier, tmp_path), without)
        assert "the weights hold no classifier" in refused(source)
        left = load_reference(WeightsSource("checkpoint", source.value, with_head=False))
        assert left.head is None

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"id2label": {"0": "a", "1": "b"}}, "names 2 labels, the head gives 3"),
            ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "several labels named 'a'"),
            ({"problem_type": "ranking"}, "problem_type 'ranking'"),
        ],
    )
    def test_settings(
        self, classifier: tuple[Any, Path], tmp_path: Path, changes: Any, said: str
    ) -> None:
        folder = copy(classifier, tmp_path)
        edit_config(folder, **changes)
        assert said in refused(WeightsSource("checkpoint", str(folder)))

    def test_a_head_and_a_probe(self, classifier: tuple[Any, Path]) -> None:
        source = WeightsSource("checkpoint", str(classifier[1]), probe=ProbeSource("p.npz"))
        assert "has a head of its own" in refused(source)

    def test_left_out_when_asked(self, classifier: tuple[Any, Path]) -> None:
        reference = load_reference(WeightsSource("checkpoint", str(classifier[1]), with_head=False))
        assert reference.head is None
        assert reference.origin.left_out == ["classifier"]


class TestProbe:
    def probe(self, path: Path, width: int = 48, **more: Any) -> Path:
        random = np.random.default_rng(0)
        arrays = {"coef_": random.normal(size=(3, width)), "intercept_": random.normal(size=3)}
        np.savez(path, **{**arrays, "classes_": np.array(["a", "b", "c"]), **more})
        return path

    @pytest.mark.parametrize(("on", "engine"), [("mean", "onnx"), ("residues", "torchscript")])
    def test_it_is_the_linear_model_on_the_embeddings(
        self, tiny_checkpoint: Path, tmp_path: Path, cache: Cache, on: str, engine: str
    ) -> None:
        path = self.probe(tmp_path / "probe.npz")
        source = WeightsSource("checkpoint", str(tiny_checkpoint), probe=ProbeSource(str(path), on))
        folder = built(source, tmp_path / "artifact", cache, targets=(engine,))
        with np.load(path) as file:
            weight, bias = file["coef_"], file["intercept_"]
        sequences = proteins(20, seed=2)
        with esm2.load(folder) as model:
            found = model.predict(sequences)
            vectors = model.embed(sequences, pool=None if on == "residues" else "mean")
        for each, vector in zip(found, vectors, strict=True):
            scores = scores_of(vector.astype(np.float64) @ weight.T + bias, "")
            np.testing.assert_allclose(each.scores, scores, atol=1e-5)

    def test_faults(self, tiny_checkpoint: Path, tmp_path: Path, cache: Cache) -> None:
        probe = ProbeSource(str(self.probe(tmp_path / "probe.npz")))
        source = WeightsSource("checkpoint", str(tiny_checkpoint), probe=probe)
        folder = built(source, tmp_path / "artifact", cache, targets=("torchscript",))
        manifest = manifests.read(folder)
        # Without the probe's file, its weights come from the artifact.
        reference = load_original(folder, manifest, str(tiny_checkpoint))
        (tmp_path / "faulty").mkdir()
        planter = Planter(folder, manifest, reference, tmp_path / "faulty", cache=cache)
        (fault,) = (fault for fault in head_faults() if "pooling" in fault.name)
        assert planter.verdict(fault, "torchscript").outcome == "rejected"

    def test_tensorrt_has_no_float64_for_a_mean(
        self, tiny_checkpoint: Path, tmp_path: Path
    ) -> None:
        probe = ProbeSource(str(self.probe(tmp_path / "probe.npz")))
        reference = load_reference(WeightsSource("checkpoint", str(tiny_checkpoint), probe=probe))
        with pytest.raises(
            ExportError, match="no float64, in which a linear probe's mean is taken"
        ):
            lower(PackedESM2(reference.model, (2,)).eval(), tmp_path)

    def test_another_width(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        path = self.probe(tmp_path / "probe.npz", width=64)
        command = ["build", "--checkpoint", str(tiny_checkpoint), "--probe", str(path)]
        found = CliRunner().invoke(main, command)
        assert found.exit_code == 2
        assert "does not fit a model of width 48" in found.stderr
        assert "out_proj.weight is [3, 64] instead of [3, 48]" in found.stderr
