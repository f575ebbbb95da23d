"""The int8 engine: its weights, its gate, its selftest, and what it never does."""

import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import runtime
from exporter.build import build
from exporter.build_options import BuildOptions
from exporter.cli import main
from exporter.errors import ExportError
from exporter.formats.onnx.int8_faults import int8_faults
from exporter.model.packed_forward import PackedESM2
from exporter.model.reference import Reference, WeightsSource, load_reference
from exporter.parity.prove.faults import faults_of
from exporter.parity.prove.planter import Planter
from exporter.parity.report.schema import read
from exporter.parity.rules.budgets import budgets_for
from exporter.parity.rules.verdict import WEIGHTS
from exporter.parity.truth.cache import Cache
from exporter.publish import writable_copy
from exporter.triton.repository import write_repository
from exporter.weights import int8 as int8_weights
from exporter.weights.int8 import Recipe
from runtime import manifest as manifests
from runtime.cli import main as run_main
from runtime.engines.onnx.cpu import WHOLE_SUMS_ENTRY
from runtime.files import file_entry
from runtime.model import load_model
from runtime.selftest import selftest
from tests.conftest import random_sequence

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> Reference:
    return load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))


@pytest.fixture(scope="module")
def int8(tiny_checkpoint: Path, cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified artifact with int8 alone; tests must not change it."""
    folder = tmp_path_factory.mktemp("int8") / "int8"
    source = WeightsSource("checkpoint", str(tiny_checkpoint))
    options = BuildOptions(source, ("onnx-int8",), (0, 1, 2), "mean", out=folder)
    build(options, lambda line: None, cache)
    return folder


class TestWeights:
    def test_within_half_a_step(self) -> None:
        weight = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
        weight[3] = 0
        quantised = int8_weights.quantise(weight)
        distance = (int8_weights.dequantise(quantised) - weight).abs()
        assert (distance <= 0.5001 * quantised.scales[:, None]).all()
        assert quantised.values.abs().amax() == int8_weights.LEVELS
        assert torch.equal(quantised.values[3], torch.zeros(50, dtype=torch.int8))

    def test_a_file_of_before_is_of_7_bits(self, tiny: Reference, tmp_path: Path) -> None:
        packed = PackedESM2(tiny.model)
        linears = [name for name, _ in int8_weights.linears(packed)]
        int8_weights.write(packed, tmp_path, Recipe(linears, levels=64))
        path = tmp_path / int8_weights.FILE_NAME
        state = load_file(path)
        del state[int8_weights.LEVELS_NAME]
        save_file(state, path)
        assert int8_weights.read_recipe(tmp_path).levels == 64
        assert int8_weights.differences(packed, tmp_path) == []

    def test_the_file(self, int8: Path, tiny: Reference) -> None:
        packed = PackedESM2(tiny.model)
        assert int8_weights.differences(packed, int8) == []
        state = load_file(int8 / int8_weights.FILE_NAME)
        assert len(state) == 2 * (2 * 6 + 1) + 1
        weight = packed.layers[1].fc1.weight
        values, scales = (state[f"layers.1.fc1.weight.{part}"] for part in ("int8", "scale"))
        assert (values.T * scales[:, None] - weight).abs().max() <= 0.5001 * scales.max()

    def test_another_weight_is_named(self, int8: Path, tiny: Reference) -> None:
        packed = PackedESM2(tiny.model)
        weight = packed.layers[0].fc2.weight
        kept = weight.detach().clone()
        try:
            with torch.no_grad():
                weight[5] += 0.1
            found = int8_weights.differences(packed, int8)
        finally:
            with torch.no_grad():
                weight.copy_(kept)
        assert "layers.0.fc2.weight.int8 differs" in found
        assert "layers.0.fc2.weight.int8 is more than half a step from the checkpoint" in found

    def test_the_same_bytes_twice(self, int8: Path, tiny: Reference, tmp_path: Path) -> None:
        packed = PackedESM2(tiny.model)
        linears = [name for name, _ in int8_weights.linears(packed)]
        int8_weights.write(packed, tmp_path, Recipe(linears))
        name = int8_weights.FILE_NAME
        assert (tmp_path / name).read_bytes() == (int8 / name).read_bytes()


def test_seven_bits_are_asked_for(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder, said = tmp_path / "artifact", list[str]()
    command = ["build", "--checkpoint", str(tiny_checkpoint), "--target", "onnx-int8"]
    built = CliRunner().invoke(main, [*command, "--int8-bits", "7", "--out", str(folder)])
    assert built.exit_code == 0, built.output
    values = load_file(folder / int8_weights.FILE_NAME)["layers.1.fc1.weight.int8"]
    assert values.abs().max() == 64
    assert "+-64" in manifests.read(folder).engines["onnx-int8"].quantised.weights
    write_repository(folder, tmp_path / "models", say=said.append)
    assert said == []


def test_contacts_are_not_quantised(tiny_checkpoint: Path, tmp_path: Path, cache: Cache) -> None:
    source = WeightsSource("checkpoint", str(tiny_checkpoint), contacts=True)
    options = BuildOptions(source, ("onnx-int8",), out=tmp_path / "artifact")
    build(options, lambda line: None, cache)
    names = load_file(tmp_path / "artifact" / int8_weights.FILE_NAME)
    assert not any("contact" in name for name in names)
    with load_model(tmp_path / "artifact", engine="onnx-int8") as model:
        assert model.contacts("MKTAYIAKQR").shape == (10, 10)


def test_triton_names_processors_that_cut_eight_bits_off(int8: Path, tmp_path: Path) -> None:
    said: list[str] = []
    write_repository(int8, tmp_path / "models", say=said.append)
    assert len(said) == 1 and "--int8-bits 7" in said[0]


def test_the_graph(int8: Path) -> None:
    graph = onnx.load(int8 / "model.int8.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Int8Linear") == 2 * 6 + 1
    # q, k and v share their input's.
    assert kinds.count("QuantizeRows") == 2 * 4 + 1
    assert kinds.count("Gemm") == 1  # the embedding table, as the LM head's last projection
    inline = [tensor for tensor in graph.initializer if not tensor.external_data]
    assert sum(len(tensor.raw_data) for tensor in inline) < 1000


def test_manifest_and_report(int8: Path) -> None:
    entry = manifests.read(int8).engines["onnx-int8"]
    assert entry.quantised is not None
    assert entry.quantised.budget == {b.name: b.limit for b in budgets_for("int8", 2)}
    report = read(int8 / "parity.json")
    assert {budget.name for budget in report.budgets} == entry.quantised.budget.keys()
    (verdict,) = report.engines
    assert verdict.status == "passed"
    # The engine and eager fair-esm in the same steps differ by luck, not by size.
    assert 0.9 < verdict.worst_ratio_to_eager < 1.1
    assert verdict.worst_relative_l2 > 1e-3


def test_its_rules_are_its_own() -> None:
    limits = {budget.quantity: budget.limit for budget in budgets_for("int8", 6)}
    assert limits == {
        "ratio": 1.25, "absolute_ratio": 2.0, "relative_l2": 0.06, "residue_cosine_p01": 0.998,
        "pooled_cosine_min": 0.999, "top1_agreement_confident": 0.995, "jensen_shannon_mean": 0.01,
        "label_agreement": 0.93, "confidence_correlation": 0.98, "variants_spearman": 0.998,
        "perplexity_drift": 0.03,
    }  # fmt: skip


def test_a_protein_does_not_see_its_neighbours(int8: Path) -> None:
    """Every scale is a token's own; float32 rounding may differ, and is far below one step."""
    random = np.random.default_rng(3)
    sequences = [random_sequence(random, n) for n in (1, 40, 300, 7)]
    sequences.append("<mask>" * 30)  # rows of another magnitude
    with runtime.load(int8, "onnx-int8") as engine:
        together = engine.run(runtime.PackedBatch.from_sequences(sequences))
        bounds = runtime.PackedBatch.from_sequences(sequences).cu_seqlens
        for i, sequence in enumerate(sequences):
            alone = engine.run(runtime.PackedBatch.from_sequences([sequence]))
            rows = slice(bounds[i], bounds[i + 1])
            for k, values in alone.representations.items():
                np.testing.assert_allclose(together.representations[k][rows], values, atol=1e-5)
            np.testing.assert_allclose(together.logits[rows], alone.logits, atol=1e-4)


class TestLoading:
    def test_auto_never_takes_it(self, int8: Path) -> None:
        with pytest.raises(runtime.EngineError, match="onnx-int8 is coarser, so it must be asked"):
            runtime.load(int8)
        with runtime.load(int8, "onnx-int8") as engine:
            assert (engine.spec.format, engine.spec.dtype) == ("onnx-int8", "int8")

    def test_it_is_for_cpus(self, int8: Path) -> None:
        with pytest.raises(runtime.UnsupportedError, match="on cuda: it is for CPUs"):
            runtime.load(int8, "onnx-int8", device="cuda")

    def test_without_vnni_sums_are_not_cut_off(
        self, int8: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Other kernels, the same integers; only there, for they take twice as long."""
        batch = runtime.PackedBatch.from_sequences(["MKTAYIAKQR", "GGAVL"])
        answers = []
        for flags, expected in (({"avx2", "avx512_vnni"}, None), ({"avx2"}, "1")):
            monkeypatch.setattr("runtime.instructions.processor_flags", lambda flags=flags: flags)
            monkeypatch.setattr("platform.machine", lambda: "x86_64")
            with runtime.load(int8, "onnx-int8") as engine:
                options = engine._session.get_session_options()
                if expected:
                    assert options.get_session_config_entry(WHOLE_SUMS_ENTRY) == expected
                else:
                    with pytest.raises(RuntimeError):
                        options.get_session_config_entry(WHOLE_SUMS_ENTRY)
                answers.append(engine.run(batch).logits.copy())
        np.testing.assert_array_equal(*answers)

    def test_half_precision_is_refused(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        source = WeightsSource("checkpoint", str(tiny_checkpoint))
        options = BuildOptions(source, ("onnx-int8",), dtype="float16", out=tmp_path / "x")
        with pytest.raises(ExportError, match="onnx-int8 quantises float32 weights, got float16"):
            build(options, lambda line: None)

    def test_embed(self, int8: Path, tmp_path: Path) -> None:
        fasta = tmp_path / "proteins.fasta"
        fasta.write_text(">a\nMKTAYIAKQR\n>b\nGGAVL\n")
        out = tmp_path / "out.npz"
        arguments = ["embed", str(int8), str(fasta), "-o", str(out), "--engine", "onnx-int8"]
        result = CliRunner().invoke(run_main, [*arguments, "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["engine"]["dtype"] == "int8"
        assert np.load(out)["embeddings"].shape == (2, 48)


class TestSelftest:
    def test_passes(self, int8: Path) -> None:
        with runtime.load(int8, "onnx-int8", validate=True) as engine:
            result = selftest(engine, int8, manifests.read(int8))
        assert result.passed, result.worst_line()
        limits = {c.tensor: c.limit for c in result.comparisons if c.limit}
        assert limits["representations.0"] == 2e-6  # nothing of it is quantised
        assert limits["logits"] > 1e-3

    def test_fails_on_a_changed_weight(self, int8: Path, tmp_path: Path) -> None:
        folder = writable_copy(int8, tmp_path / "copy")
        path = folder / int8_weights.FILE_NAME
        data = bytearray(path.read_bytes())
        state = load_file(path)
        name = "layers.1.fc1.weight.int8"
        row = np.ascontiguousarray(state[name].numpy()).tobytes()
        place = bytes(data).index(row)
        data[place : place + len(row) // 4] = bytes(len(row) // 4)
        path.write_bytes(data)
        with pytest.raises(runtime.ArtifactError, match=r"weights\.int8\.safetensors was changed"):
            runtime.load(folder, "onnx-int8")
        manifest = manifests.read(folder, check_files=False)
        files = {**manifest.files, path.name: file_entry(path)}
        manifests.write(msgspec.structs.replace(manifest, files=files), folder)
        with pytest.raises(runtime.EngineError, match="Do not use this engine here"):
            runtime.load(folder, "onnx-int8", validate=True)


@pytest.fixture(scope="module")
def planter(
    int8: Path, tiny: Reference, cache: Cache, tmp_path_factory: pytest.TempPathFactory
) -> Planter:
    workspace = tmp_path_factory.mktemp("faults")
    return Planter(int8, manifests.read(int8), tiny, workspace, cache=cache)


class TestFaults:
    @pytest.mark.parametrize("fault", int8_faults(), ids=lambda fault: fault.name)
    def test_its_own_are_rejected(self, planter: Planter, fault) -> None:  # type: ignore[no-untyped-def]
        found = planter.verdict(fault, "onnx-int8")
        if fault.name == "smoothing on one side only":  # of large channels: test_smoothing.py
            assert found.outcome == "does not apply", found
            return
        assert found.outcome == "rejected", found
        if fault.group == "weights":
            assert WEIGHTS in " ".join(found.exactly)
        else:
            assert found.margin is not None

    @pytest.mark.parametrize(
        "name", ["rotary missing on k", "positions do not restart", "two rows of a tensor swapped"]
    )
    def test_others_are_rejected(self, planter: Planter, int8: Path, name: str) -> None:
        fault = next(f for f in faults_of("onnx-int8") if f.name == name)
        found = planter.verdict(fault, "onnx-int8")
        assert found.outcome == "rejected", found

    def test_what_rounding_hides_is_listed(self, planter: Planter, int8: Path) -> None:
        faults = faults_of("onnx-int8")
        fault = next(f for f in faults if f.name == "GELU by tanh")
        found = planter.verdict(fault, "onnx-int8")
        assert found.outcome == "hidden", found
        assert "in float32 rejected" in found.note

    def test_what_a_fault_changed_is_put_back(self, planter: Planter, int8: Path) -> None:
        manifest = manifests.read(int8)
        for fault in faults_of("onnx-int8"):
            if fault.group != "weights":
                continue
            with planter.planted(fault, "onnx-int8") as faulty:
                pass
            for name, entry in manifest.files.items():
                assert file_entry(faulty / name) == entry, fault.name
