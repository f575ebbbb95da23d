"""int8 with some linears in float: which, how many, and that everything says so."""

from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from torch import Tensor, nn

from exporter.cli import main as export_main
from exporter.model.packed_forward import PackedESM2
from exporter.model.reference import Reference, WeightsSource, load_reference
from exporter.parity.report.schema import read
from exporter.weights import int8 as int8_weights
from exporter.weights.calibration import BUILT_IN, batches, measure
from exporter.weights.int8 import Recipe
from exporter.weights.int8_eager import quantised_linears
from exporter.weights.mixture import Mixture, choose, worst_error
from exporter.weights.smoothing import sites
from runtime import manifest as manifests
from runtime.cli import main as run_main
from runtime.describe import in_words
from runtime.manifest_schema import MixtureEntry


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> Reference:
    return load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))


@pytest.fixture(scope="module")
def packed(tiny: Reference) -> PackedESM2:
    return PackedESM2(tiny.model).eval()


@pytest.fixture(scope="module")
def recipe(packed: PackedESM2) -> Recipe:
    linears = dict(int8_weights.linears(packed))
    return Recipe(list(linears), measure(packed, linears.items(), BUILT_IN))


@pytest.fixture(scope="module")
def whole(packed: PackedESM2, recipe: Recipe) -> Mixture:
    return choose(packed, recipe, BUILT_IN, budget=1)


@torch.no_grad()
def error_of(packed: PackedESM2, recipe: Recipe) -> float:
    inputs = list(batches(BUILT_IN))
    exact = [packed(*tensors) for tensors in inputs]
    with quantised_linears(packed, recipe):
        return worst_error([packed(*tensors) for tensors in inputs], exact)


class TestChoice:
    def test_none_where_int8_is_good_enough(self, whole: Mixture, recipe: Recipe) -> None:
        assert (whole.recipe, list(whole.in_float)) == (recipe, [])
        assert whole.error == whole.error_of_int8 > 1e-3

    def test_the_fewest_that_meet_the_budget(
        self, packed: PackedESM2, recipe: Recipe, whole: Mixture
    ) -> None:
        budget = 0.7 * whole.error
        mixture = choose(packed, recipe, BUILT_IN, budget)
        assert mixture.error_of_int8 == whole.error
        assert mixture.error == error_of(packed, mixture.recipe) <= budget
        assert sorted([*mixture.recipe.linears, *mixture.in_float]) == sorted(recipe.linears)
        # One input less in float misses it.
        last = next(s for s in sites(recipe.linears) if mixture.in_float[-1] in s.readers)
        fewer = Recipe([*mixture.recipe.linears, *last.readers], recipe.smoothing)
        assert error_of(packed, fewer) > budget

    def test_the_bad_one_goes_first(self, tiny_checkpoint: Path) -> None:
        reference = load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))
        packed = PackedESM2(reference.model).eval()
        with torch.no_grad():  # in every row one weight leaves the others a level or two
            packed.layers[1].fc1.weight[:, 7] *= 60
        linears = [name for name, _ in int8_weights.linears(packed)]
        mixture = choose(packed, Recipe(linears), BUILT_IN, 0.03)
        assert mixture.in_float[0] == "layers.1.fc1"
        assert mixture.error < mixture.error_of_int8 / 2


class Chaos(nn.Module):
    """A head whose numbers say nothing of int8's error."""

    rows, num_labels = "N", 1

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        return (1e6 * x[:1, :1]).sin()


def test_a_head_is_no_measure(tiny: Reference, recipe: Recipe, whole: Mixture) -> None:
    packed = PackedESM2(tiny.model).eval()
    packed.head = Chaos()
    assert choose(packed, recipe, BUILT_IN, budget=1) == whole


def test_in_words_without_any() -> None:
    entry = MixtureEntry(in_float=[], num_linears=13, budget=1, error=0.0141, error_of_int8=0.0141)
    sentence = "all 13 linears in int8: relative L2 0.014 on the calibration proteins"
    assert in_words(entry) == sentence


@pytest.mark.slow
def test_a_mixture_passes_the_gate(
    tiny_checkpoint: Path, tiny: Reference, whole: Mixture, tmp_path: Path
) -> None:
    out = tmp_path / "mixed"
    arguments = ["build", "--checkpoint", str(tiny_checkpoint), "--target", "onnx-int8"]
    budget = 0.7 * whole.error
    result = CliRunner().invoke(
        export_main, [*arguments, "--int8-budget", str(budget), "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    entry = manifests.read(out).engines["onnx-int8"].quantised
    assert entry is not None and entry.mixture is not None
    kept = entry.mixture.in_float
    assert kept and entry.mixture.budget == budget >= entry.mixture.error
    graph = onnx.load(out / "model.int8.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Int8Linear") == 2 * 6 + 1 - len(kept)
    assert kinds.count("Gemm") == 1 + len(kept)
    with safe_open(out / int8_weights.FILE_NAME, "pt") as file:
        assert not {f"{name}.weight.int8" for name in kept} & set(file.keys())
    assert int8_weights.differences(PackedESM2(tiny.model), out) == []
    report = read(out / "parity.json")
    (verdict,) = report.engines
    assert 0.9 < verdict.worst_ratio_to_eager < 1.1
    sentence = f"{len(kept)} of 13 linears in float ({', '.join(kept)})"
    assert sentence in report.reference["eager in int8, for onnx-int8"]
    assert sentence in CliRunner().invoke(run_main, ["info", str(out)]).output
