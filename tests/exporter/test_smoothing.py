"""Large channels of trained weights: int8 that holds, and every dtype's gate on them."""

from pathlib import Path
from unittest.mock import patch

import msgspec
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from exporter.build import build
from exporter.build_options import BuildOptions
from exporter.cli import main as export_main
from exporter.formats.onnx.int8_faults import int8_faults
from exporter.model.packed_forward import PackedESM2
from exporter.model.reference import Reference, WeightsSource, load_original, load_reference
from exporter.model.synthetic import OUTLIER_CHANNELS, OUTLIER_SCALE
from exporter.parity.prove.planter import Planter
from exporter.parity.report.schema import ParityError, read
from exporter.parity.truth.cache import Cache
from exporter.weights import int8 as int8_weights
from exporter.weights.calibration import BUILT_IN, MOST_TOKENS, first_proteins, measure
from exporter.weights.int8 import Recipe
from exporter.weights.smoothing import NOTHING, SUFFIX, Smoothing, factors_of, sites
from runtime import manifest as manifests
from tests.conftest import ARCHITECTURE, save_checkpoint

LARGE = [5, 17, 40]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers with large channels in every input of a linear."""
    path = save_checkpoint(tmp_path_factory.mktemp("outliers") / "tiny.pt", (2, 48, 4))
    stored = torch.load(path, weights_only=False)
    state = {n.removeprefix("encoder.sentence_encoder."): x for n, x in stored["model"].items()}
    for layer in ("layers.0", "layers.1"):
        for giver, readers in (
            ("self_attn_layer_norm", [f"self_attn.{part}_proj" for part in "qkv"]),
            ("self_attn.v_proj", ["self_attn.out_proj"]),
            ("final_layer_norm", ["fc1"]),
            ("fc1", ["fc2"]),
        ):
            for name in ("weight", "bias"):
                state[f"{layer}.{giver}.{name}"][LARGE] *= 30
            for reader in readers:
                state[f"{layer}.{reader}.weight"][:, LARGE] /= 30
    torch.save(stored, path)
    return path


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> Reference:
    return load_reference(WeightsSource("checkpoint", str(checkpoint)))


@pytest.fixture(scope="module")
def smoothing(tiny: Reference) -> Smoothing:
    packed = PackedESM2(tiny.model).eval()
    return measure(packed, int8_weights.linears(packed), BUILT_IN)


@pytest.fixture(scope="module")
def int8(checkpoint: Path, cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified artifact with int8 alone; tests must not change it."""
    folder = tmp_path_factory.mktemp("smoothed") / "int8"
    build(_options(checkpoint, folder), lambda line: None, cache)
    return folder


def _options(checkpoint: Path, out: Path) -> BuildOptions:
    return BuildOptions(WeightsSource("checkpoint", str(checkpoint)), ("onnx-int8",), out=out)


class TestFactors:
    def test_random_channels_are_left_alone(self) -> None:
        random = torch.Generator().manual_seed(0)
        weight = torch.rand(30, 50, generator=random) + 0.5
        assert factors_of(torch.rand(50, generator=random) + 0.5, [weight]) is None

    def test_large_ones_are_divided_by_a_power_of_two(self) -> None:
        largest, weight = torch.ones(50), torch.ones(30, 50)
        largest[7], weight[:, 7] = 30, 1 / 30
        factors = factors_of(largest, [weight, weight / 2])
        expected = torch.ones(50)
        expected[7] = 1 / 32
        assert factors is not None and torch.equal(factors, expected)

    def test_unused_channels_are_left_alone(self) -> None:
        largest, weight = torch.ones(50), torch.ones(30, 50)
        largest[3], weight[:, 4] = 0, 0
        assert factors_of(largest, [weight]) is None
        assert factors_of(torch.zeros(50), [weight]) is None

    def test_every_linear_is_of_one_site(self, tiny: Reference) -> None:
        linears = [name for name, _ in int8_weights.linears(PackedESM2(tiny.model))]
        assert sorted(r for site in sites(linears) for r in site.readers) == sorted(linears)

    def test_they_are_found_where_they_were_planted(self, smoothing: Smoothing) -> None:
        assert len(smoothing.factors) == 2 * 4
        assert set(smoothing.multiplied) == {"layers.0.fc2", "layers.1.fc2"}
        for name, factors in smoothing.factors.items():
            assert (factors[LARGE] <= 1 / 8).all()
            # Of 48 channels some others differ by chance, and more of them behind GELU.
            if name not in smoothing.multiplied:
                others = np.delete(factors.numpy(), LARGE)
                assert others.min() >= 1 / 4 and (others == 1).mean() > 0.9

    def test_folding_changes_no_bit(self, tiny: Reference, smoothing: Smoothing, tensors) -> None:  # type: ignore[no-untyped-def]
        packed = PackedESM2(tiny.model, [1, 2]).eval()
        before = packed(*tensors)
        folded = {n: x for n, x in smoothing.factors.items() if n not in smoothing.multiplied}
        state = packed.state_dict()
        changed = {name: Smoothing(folded).taken_in(name, x) for name, x in state.items()}
        assert sum(changed[name] is not state[name] for name in state) == 2 * 10
        after = torch.func.functional_call(packed, changed, tensors)
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


class TestCalibration:
    def test_the_same_proteins_have_the_same_digest(self) -> None:
        assert BUILT_IN.sha256 == first_proteins("x", BUILT_IN.sequences).sha256
        assert BUILT_IN.sha256 != first_proteins("x", BUILT_IN.sequences[1:]).sha256

    def test_a_large_file_is_cut(self) -> None:
        taken = first_proteins("x", ["M" * 998] * 20)
        assert taken.num_tokens == MOST_TOKENS // 1000 * 1000
        assert len(first_proteins("x", ["M" * 9000, "M"]).sequences) == 1


@pytest.mark.slow
class TestInt8:
    def test_it_is_refused_without_smoothing(
        self, checkpoint: Path, cache: Cache, tmp_path: Path
    ) -> None:
        with (
            patch("exporter.formats.onnx.int8.measure", lambda *of: NOTHING),
            pytest.raises(ParityError, match="onnx-int8.*relative L2, int8"),
        ):
            build(_options(checkpoint, tmp_path / "x"), lambda line: None, cache)

    def test_it_passes_with_it(self, int8: Path) -> None:
        (verdict,) = read(int8 / "parity.json").engines
        assert verdict.status == "passed"
        assert 0.9 < verdict.worst_ratio_to_eager < 1.1
        quantised = manifests.read(int8).engines["onnx-int8"].quantised
        assert quantised is not None and quantised.smoothing is not None
        assert quantised.smoothing.sha256 == BUILT_IN.sha256
        assert (quantised.smoothing.folded, quantised.smoothing.multiplied) == (2 * 3, 2)

    def test_the_graph_multiplies_behind_gelu_alone(self, int8: Path) -> None:
        graph = onnx.load(int8 / "model.int8.onnx", load_external_data=False).graph
        factors = [name for node in graph.node for name in node.input if name.endswith(SUFFIX)]
        assert factors == [f"layers.{layer}.fc2{SUFFIX}" for layer in (0, 1)]

    def test_weights_are_the_checkpoints(self, int8: Path, tiny: Reference, tmp_path: Path) -> None:
        packed = PackedESM2(tiny.model)
        assert int8_weights.differences(packed, int8) == []
        state = load_file(int8 / int8_weights.FILE_NAME)
        for name, expected in (
            ("layers.1.fc1.weight.int8", "differs"),
            ("layers.1.final_layer_norm.weight", "differs"),
            ("layers.0.self_attn.v_proj.bias", "differs"),
            (f"layers.0.fc1{SUFFIX}", "holds more than powers of two"),
        ):
            changed = {**state, name: state[name] + 1}
            save_file(changed, tmp_path / int8_weights.FILE_NAME)
            found = int8_weights.differences(packed, tmp_path)
            assert f"{name} {expected}" in found

    def test_other_weights_are_smoothed_by_the_same_factors(
        self, int8: Path, tiny: Reference
    ) -> None:
        state = load_file(int8 / int8_weights.FILE_NAME)
        again = int8_weights.requantised(dict(PackedESM2(tiny.model).named_parameters()), state)
        others = {int8_weights.LEVELS_NAME}
        assert again.keys() == {name for name in state if not name.endswith(SUFFIX)} - others
        assert all(torch.equal(tensor, state[name]) for name, tensor in again.items())

    def test_other_factors_are_no_fault(
        self, int8: Path, tiny: Reference, smoothing: Smoothing, tmp_path: Path
    ) -> None:
        """A user's proteins give others; whatever they are, the model stays what it is."""
        other = {name: factors / 2 for name, factors in smoothing.factors.items()}
        packed = PackedESM2(tiny.model)
        linears = [name for name, _ in int8_weights.linears(packed)]
        int8_weights.write(packed, tmp_path, Recipe(linears, Smoothing(other)))
        assert int8_weights.differences(packed, tmp_path) == []

    def test_smoothing_on_one_side_is_rejected(
        self, int8: Path, tiny: Reference, cache: Cache, tmp_path: Path
    ) -> None:
        planter = Planter(int8, manifests.read(int8), tiny, tmp_path, cache=cache)
        fault = next(f for f in int8_faults() if f.name == "smoothing on one side only")
        found = planter.verdict(fault, "onnx-int8")
        assert found.outcome == "rejected", found
        assert found.margin is not None and found.margin > 2

    def test_a_users_proteins(self, checkpoint: Path, tmp_path: Path) -> None:
        fasta = tmp_path / "mine.fasta"
        fasta.write_text(">a\nMKTAYIAKQR\n>b\nGGAVL<mask>\n")
        out = tmp_path / "out"
        arguments = ["build", "--checkpoint", str(checkpoint), "--target", "onnx-int8"]
        calibration = ["--calibration", str(fasta)]
        result = CliRunner().invoke(export_main, [*arguments, *calibration, "--out", str(out)])
        assert result.exit_code == 0, result.output
        entry = manifests.read(out).engines["onnx-int8"].quantised
        assert entry is not None and entry.smoothing is not None
        expected = first_proteins("mine.fasta", ["MKTAYIAKQR", "GGAVL<mask>"])
        assert entry.smoothing.sha256 == expected.sha256
        assert (entry.smoothing.proteins, entry.smoothing.num_tokens) == ("mine.fasta", 20)


@pytest.mark.parametrize(
    ("option", "value"), [("--calibration", "x.fasta"), ("--int8-budget", "1")]
)
def test_options_of_int8_alone(checkpoint: Path, option: str, value: str) -> None:
    arguments = ["build", "--checkpoint", str(checkpoint), option, value]
    result = CliRunner().invoke(export_main, arguments)
    assert result.exit_code == 2
    assert f"{option} is for --target onnx-int8" in result.output


class TestOutliers:
    def test_they_are_trained_like(self, reference: Reference) -> None:
        source = WeightsSource("synthetic", ARCHITECTURE, outliers=True)
        theirs = load_reference(source)
        assert theirs.origin.outliers and not reference.origin.outliers
        assert theirs.origin.state_sha256 != reference.origin.state_sha256
        ratios = [
            layer.final_layer_norm.weight / plain.final_layer_norm.weight
            for layer, plain in zip(theirs.model.layers, reference.model.layers, strict=True)
        ]
        assert all(torch.equal(ratio.round(), ratios[0].round()) for ratio in ratios)
        assert int((ratios[0] > OUTLIER_SCALE - 1).sum()) == OUTLIER_CHANNELS

    @torch.no_grad()
    def test_the_model_gives_what_it_gave(self, reference: Reference, tensors) -> None:  # type: ignore[no-untyped-def]
        theirs = load_reference(WeightsSource("synthetic", ARCHITECTURE, outliers=True))
        answers = [PackedESM2(of.model, [6]).eval()(*tensors) for of in (reference, theirs)]
        for plain, other in zip(*answers, strict=True):
            assert not torch.equal(plain, other)
            assert (plain - other).norm() < 2e-6 * plain.norm()

    @pytest.mark.slow
    def test_they_are_drawn_again(self, artifact: Path) -> None:
        theirs = load_reference(WeightsSource("synthetic", ARCHITECTURE, outliers=True))
        manifest = msgspec.structs.replace(manifests.read(artifact), weights=theirs.origin)
        again = load_original(artifact, manifest, None)
        assert again.origin == theirs.origin

    def test_of_synthetic_weights_alone(self, checkpoint: Path) -> None:
        arguments = ["build", "--checkpoint", str(checkpoint), "--outliers"]
        result = CliRunner().invoke(export_main, arguments)
        assert result.exit_code == 2
        assert "--outliers is for --synthetic" in result.output
