"""How the gate sees steps in half precision: its rounding, its probe, and what they are made of."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from exporter.model.precision import cast_copy
from exporter.model.reference import Reference, WeightsSource, load_reference
from exporter.parity.answers import Floats
from exporter.parity.probing import WAYS, Probe
from exporter.parity.rules import arithmetic
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.packs import as_batch
from exporter.parity.truth.probe import filled, probe_of, probe_pack, shown
from exporter.parity.truth.rounded import Rounded, Step
from runtime import manifest as manifests
from runtime.manifest_schema import Architecture
from runtime.packing import PackedBatch

HALF = ("float16", "bfloat16")
BOUNDS = np.array([0, 1, 8, 40], dtype=np.int32)


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> Reference:
    return load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))


@pytest.mark.parametrize("dtype", HALF)
def test_rounding_is_pytorchs(dtype: str) -> None:
    random = np.random.default_rng(0)
    numbers = random.normal(size=4000) * 2.0 ** random.integers(-30, 10, 4000)
    ties = np.array([0.0, 1 + 2.0**-9, 1 + 3 * 2.0**-9, 1 + 2.0**-12, -(2.0**-25), 2.0**-24 * 1.5])
    x = np.concatenate([numbers, ties])
    expected = torch.from_numpy(x).to(getattr(torch, dtype)).double().numpy()
    np.testing.assert_array_equal(arithmetic.rounded(x, dtype), expected)


def test_without_rounding_it_is_eager_fair_esm(tiny: Reference) -> None:
    """Written apart from it, it must not be another model."""
    reference = probe_of(tiny)
    last = f"representations.{tiny.architecture.num_layers}"
    pack = probe_pack()
    oracle = run_eager(reference, {"probe": pack}, (2,), "mean", torch.float64)["probe"]
    found = Rounded(reference.model, torch.float64)(as_batch(pack))
    for name in ("logits", last):
        np.testing.assert_allclose(found[name], oracle.tensors[name], rtol=0, atol=1e-6)


def test_what_the_probe_leaves_out_adds_nothing(tiny: Reference) -> None:
    """An engine gets whole tensors, and is compared with a model that has a part of them."""
    reference, whole = probe_of(tiny), copy.deepcopy(tiny.model)
    small = reference.model.state_dict()
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            parameter.copy_(filled(small[name], parameter.shape))
    assert small["layers.1.fc1.weight"].shape[0] < whole.layers[1].fc1.weight.shape[0]
    packs = {"probe": probe_pack()}
    found, expected = (
        run_eager(of, packs, (2,), "mean", torch.float64)["probe"]
        for of in (reference, dataclasses.replace(reference, model=whole))
    )
    for name, values in expected.tensors.items():
        np.testing.assert_allclose(found.tensors[name], values, rtol=0, atol=1e-13)


def test_the_probe_takes_little_memory_beside_the_original(reference: Reference) -> None:
    def elements(model: Any) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    probe = probe_of(reference)
    assert elements(probe.model) < elements(reference.model) / 6
    run_eager(probe, {"one": probe_pack()[:1]}, (6,), "mean", torch.float64)
    assert elements(probe.model) < elements(reference.model) / 6, "copies stay one"
    layers = probe.model.layers
    assert layers[0].self_attn.v_proj.weight is layers[5].self_attn.v_proj.weight


@pytest.mark.parametrize("dtype", HALF)
def test_its_weights_are_numbers_of_half_precision(tiny: Reference, dtype: str) -> None:
    model = probe_of(tiny).model
    rounded = dict(cast_copy(model, getattr(torch, dtype)).named_parameters())
    for name, parameter in model.named_parameters():
        if not name.startswith("contact_head"):
            assert torch.equal(rounded[name].float(), parameter), name


@pytest.mark.parametrize(
    "shape", [(2, 48, 4), (6, 320, 20), (12, 480, 20), (30, 640, 20), (33, 1280, 20),
              (36, 2560, 40), (48, 5120, 40)]
)  # fmt: skip
def test_every_model_of_esm2_is_wide_enough(shape: tuple[int, int, int]) -> None:
    layers, width, heads = shape
    steps = shown(architecture(layers, width, heads))
    columns = np.concatenate([s.columns for s in steps if s.output == f"representations.{layers}"])
    # Each its own, and together all of them; of an odd number one is left.
    assert len(set(columns)) == len(columns) >= width - 1
    assert set(columns) <= set(range(width))
    assert len(steps) == 5 * layers + 3


class OneNormInHalf(Rounded):
    """One of all LayerNorms, by its place, rounds each of its own steps."""

    place = 0

    def __call__(self, batch: PackedBatch) -> dict[str, Floats]:
        self.left = self.place
        return super().__call__(batch)

    def _norm(self, norm: Any, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left != -1:
            return super()._norm(norm, x)
        centred = self._round(x - self._round(x.mean(-1, keepdim=True)))
        variance = self._round(self._round(centred * centred).mean(-1, keepdim=True))
        normed = self._round(centred * self._round(torch.rsqrt(variance + norm.eps)))
        return self._round(self._round(normed * self._exact(norm.weight)) + self._exact(norm.bias))


@pytest.fixture(scope="module", params=HALF)
def probe(request: pytest.FixtureRequest, tiny: Reference) -> Probe:
    reference, pack = probe_of(tiny), probe_pack()
    oracle = run_eager(reference, {"probe": pack}, (2,), "mean", torch.float64)["probe"]
    batch, dtype = as_batch(pack), getattr(torch, request.param)
    ways = {kept: Rounded(reference.model, dtype, kept=kept)(batch) for kept in WAYS}
    return Probe(reference, batch, oracle, ways.__getitem__)


class TestSteps:
    """Of engines that are models of rounding themselves."""

    @pytest.mark.parametrize("kept", WAYS, ids=str)
    def test_an_engine_may_round_less(self, probe: Probe, kept: tuple[Step, ...]) -> None:
        found = probe._steps(probe.once(kept), "cpu", ())
        assert not [check for check in found if check.failed]

    # The fifth is the one at the end, the sixth the LM head's.
    @pytest.mark.parametrize("place", range(6))
    def test_any_norm_in_half_precision_is_seen(
        self, probe: Probe, request: pytest.FixtureRequest, place: int
    ) -> None:
        dtype = request.node.callspec.params["probe"]
        engine = OneNormInHalf(probe.reference.model, getattr(torch, dtype))
        engine.place = place
        failed = [check for check in probe._steps(engine(probe.batch), "cpu", ()) if check.failed]
        assert arithmetic.STEP.name in [check.name for check in failed]


def test_a_narrow_model_shows_nothing() -> None:
    assert shown(architecture(12, 48, 4)) == []


def architecture(layers: int, width: int, heads: int) -> Architecture:
    return Architecture("any", layers, width, heads, width // heads, 33, True)


class TestAttention:
    def attended(self, dtype: str, rounds_softmax: bool = False) -> tuple[np.ndarray, ...]:
        torch.manual_seed(0)
        kind = getattr(torch, dtype)
        q, k, v = (torch.randn(BOUNDS[-1], 3, 16).to(kind).double() for _ in range(3))
        results = []
        for start, end in zip(BOUNDS[:-1], BOUNDS[1:], strict=True):
            a, b, c = (x[start:end].transpose(0, 1) for x in (q, k, v))
            weights = (a @ b.mT / 4).softmax(-1)
            if rounds_softmax:
                weights = weights.to(kind).double()
            results.append((weights @ c).transpose(0, 1))
        result = torch.cat(results).to(kind).double()
        return tuple(x.numpy() for x in (q, k, v, result))

    @pytest.mark.parametrize("dtype", HALF)
    def test_rounded_once_is_1(self, dtype: str) -> None:
        found = arithmetic.attention_rounding(self.attended(dtype), BOUNDS, dtype)
        assert found == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize("dtype", HALF)
    def test_rounded_twice_is_more(self, dtype: str) -> None:
        attended = self.attended(dtype, rounds_softmax=True)
        found = arithmetic.attention_rounding(attended, BOUNDS, dtype)
        assert found > arithmetic.ATTENTION.limit

    def test_of_single_tokens_nothing_is_rounded(self) -> None:
        attended = tuple(x[:1] for x in self.attended("bfloat16"))
        assert arithmetic.attention_rounding(attended, BOUNDS[:2], "bfloat16") == 0
        wrong = (*attended[:3], attended[3] * 1.01)
        assert arithmetic.attention_rounding(wrong, BOUNDS[:2], "bfloat16") > 1e6


def test_a_probe_says_why_there_is_none(tiny: Reference, tiny_artifact: Path) -> None:
    manifest = manifests.read(tiny_artifact)
    manifest.layers.remove(2)
    assert "last layer is not exported" in str(Probe.prepare(tiny, manifest, None, "cpu"))


class TestRotation:
    POSITIONS = np.arange(300)
    FREQUENCIES = (10000.0 ** (-np.arange(8) / 8)).astype(np.float32)

    def rotated(self, dtype: str, tables: torch.dtype = torch.float32) -> tuple[np.ndarray, ...]:
        x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
        x = x.to(getattr(torch, dtype)).float()
        angles = torch.from_numpy(self.POSITIONS).float()[:, None] * torch.from_numpy(
            self.FREQUENCIES
        )
        cos, sin = (table.to(tables).float()[:, None] for table in (angles.cos(), angles.sin()))
        a, b = x.chunk(2, -1)
        rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        return rotated.to(getattr(torch, dtype)).double().numpy(), x.numpy()

    def problem(self, got: np.ndarray, x: np.ndarray, dtype: str) -> str:
        return arithmetic.rotation_problem(got, x, self.POSITIONS, self.FREQUENCIES, dtype)

    @pytest.mark.parametrize("dtype", HALF)
    def test_of_float32_tables_there_is_none(self, dtype: str) -> None:
        assert self.problem(*self.rotated(dtype), dtype) == ""

    @pytest.mark.parametrize("dtype", HALF)
    def test_of_others_there_is(self, dtype: str) -> None:
        assert "rounded once" in self.problem(*self.rotated(dtype, torch.float16), dtype)

    def test_nan_is_one(self) -> None:
        got, x = self.rotated("bfloat16")
        got[7, 1, 2] = np.nan
        assert "position 7, head 2, column 3 is nan" in self.problem(got, x, "bfloat16")
