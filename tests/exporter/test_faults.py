"""The gate must be able to fail: every planted fault, in every engine, is rejected by name."""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import msgspec
import pytest

import runtime
from exporter.build import build
from exporter.build_options import BuildOptions
from exporter.errors import CheckpointError, ExportError
from exporter.model.reference import Reference, WeightsSource, load_reference
from exporter.parity.prove.faults import faults, faults_of
from exporter.parity.prove.half_faults import half_faults
from exporter.parity.prove.planter import Planter
from exporter.parity.prove.prove_gate import prove_gate
from exporter.parity.prove.replaced import replaced
from exporter.parity.report.schema import EVERY_ENGINE
from exporter.parity.rules.budgets import Budget
from exporter.parity.rules.verdict import INTERNALS, REPEATED, ROTATED, TOKENS, WEIGHTS
from exporter.parity.truth.cache import Cache
from exporter.planted import Fault, GraphFault, ManifestFault, RuntimeFault, WeightsFault
from runtime import manifest as manifests
from runtime import tokenizer
from runtime.files import file_entry

pytestmark = pytest.mark.slow

BY_NAME = {fault.name: fault for fault in faults()}
GROUPS = {
    "graph", "packing", "length and size", "state", "production", "half precision",
    "token dropout", "weights", "head", "contacts", "tokenizer and pooling", "manifest",
}  # fmt: skip
# Of outputs that this artifact has not: planted in test_heads.py and test_contacts.py.
NOT_HERE = ("head", "contacts")
ENGINES = ("torchscript", "onnx")

# What no output can show, and so must be rejected by the check that looks inside.
INVISIBLE = {"max_seqlen baked from tracing": INTERNALS, "positions do not restart": INTERNALS}
# No output shows the first three. The last two are manifests that agree with their folder.
ONE_BIT = "one weight off by its last bit"
UNSEEN_AT_RUNTIME = {
    *INVISIBLE, ONE_BIT, "digest of another checkpoint", "names another dtype",
}  # fmt: skip
# Planted around what the gate loads, or between an engine and the file.
NOT_FOR_THE_SELFTEST = ("state", "production")
REFUSALS = "failed its selftest|was changed after it was built|has schema version|SHA-256 differs"
REASONS = {
    "edited without its seal": "was changed after it was built",
    "of a newer schema": "has schema version",
    "weights are not the file that it lists": "SHA-256 differs",
    "digest of another checkpoint": "was built from: digest of its parameters",
    "names another dtype": "dtype float32, expected float16",
    "names another pooling": "as a multiple of eager fair-esm's own",
}
BY_ROUNDING = {
    **{fault.name: "rounding of each step" for fault in half_faults()},
    "rotary tables in float16": ROTATED,
    "softmax in the dtype": "rounding of attention",
}
BY_WEIGHTS = {fault.name for fault in faults() if fault.group == "weights"}
BY_TOKENS = {"two proteins merged", "a boundary off by one", "BOS missing",
             "two vocabulary entries swapped"}  # fmt: skip


def test_there_are_enough_of_them() -> None:
    names = [fault.name for fault in faults()]
    assert len(names) == len(set(names)) >= 24
    assert {fault.group for fault in faults()} == GROUPS


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> Reference:
    return load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))


@pytest.fixture(scope="module")
def planter(
    tiny: Reference, tiny_artifact: Path, cache: Cache, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Planter]:
    workspace = tmp_path_factory.mktemp("faults")
    manifest = manifests.read(tiny_artifact)
    yield Planter(tiny_artifact, manifest, tiny, workspace, cache=cache)


# Exporting takes seconds: of what is planted in the graph, one for each way to be seen; in
# TorchScript all of those that a selftest must see. make parity-float32 plants all of them, in 8M.
BY_ITS_LENGTH = "softmax scale 2 % too large beyond 2,048"
IN_GRAPH = {
    "torchscript": {
        BY_ITS_LENGTH, *(fault.name for fault in faults() if fault.group != "length and size"),
    },
    "onnx": {
        *INVISIBLE, "rotary missing on k", "softmax scale 2 % too large", "masks not zeroed",
        "pooled output of another kind",
    },
}  # fmt: skip
PLANTED = [
    pytest.param(fault, engine, id=f"{fault.name}-{engine}")
    for fault in faults()
    for engine in ENGINES
    if fault.name not in BY_ROUNDING
    if fault.group not in NOT_HERE
    if not isinstance(fault, GraphFault) or fault.name in IN_GRAPH[engine]
]


@pytest.mark.parametrize(("fault", "engine"), PLANTED)
def test_every_fault_is_rejected(planter: Planter, fault: Fault, engine: str) -> None:
    with planter.planted(fault, engine) as faulty:
        found, _ = planter.show(fault, faulty, engine)
        if fault.name not in UNSEEN_AT_RUNTIME and fault.group not in NOT_FOR_THE_SELFTEST:
            # Where it runs too, without fair-esm and the exporter.
            with pytest.raises(runtime.Esm2Error, match=REFUSALS):
                runtime.load(faulty, engine, validate=True)
    assert found.outcome == "rejected", found
    named = " ".join([found.by, *found.exactly])
    if fault.name in INVISIBLE:
        assert INVISIBLE[fault.name] in named
    if fault.name in BY_WEIGHTS:
        assert WEIGHTS in named
    if fault.name in BY_TOKENS:
        assert TOKENS in named
    if fault.group == "state":
        assert REPEATED in named or "relative L2" in named
    if fault.group == "manifest":
        assert REASONS[fault.name] in named
    if fault.group in ("graph", "token dropout", "weights") and fault.name != ONE_BIT:
        # By a number too, well over its limit: no exact check is needed to see these.
        assert found.margin is not None
        assert found.margin > 2


HARMLESS = RuntimeFault("none", "packing", nullcontext)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_fault_changed_is_put_back(
    planter: Planter, tiny_artifact: Path, engine: str
) -> None:
    """Else one fault would be rejected for the one before it."""
    manifest = manifests.read(tiny_artifact)
    one_of_each_kind = {type(fault): fault for fault in faults() if not fault.applies(manifest)}
    for fault in one_of_each_kind.values():
        with planter.planted(fault, engine) as faulty:
            planter.show(fault, faulty, engine)
        for name, entry in manifest.files.items():
            assert file_entry(faulty / name) == entry, fault.name
    assert planter.verdict(HARMLESS, engine).outcome == "accepted"
    untouched = ManifestFault("none", "manifest", lambda manifest: manifest)
    assert planter.verdict(untouched, engine).outcome == "accepted"


def test_a_fault_that_the_weights_have_already_does_not_apply(planter: Planter) -> None:
    name = "layers.0.fc1.bias"
    same = WeightsFault("none", "weights", lambda state, architecture: {name: state[name]})
    verdict = planter.verdict(same, "onnx")
    assert verdict.outcome == "does not apply"
    assert "so already" in verdict.note


def test_a_fault_that_is_never_reached_is_an_error(planter: Planter) -> None:
    unreached = partial(replaced, tokenizer, "decode", lambda *_: "")
    with pytest.raises(ExportError, match="never reached: nothing calls decode"):
        planter.verdict(RuntimeFault("none", "packing", unreached), "onnx")


@pytest.fixture(scope="module")
def half(
    tiny_checkpoint: Path, tiny: Reference, tmp_path_factory: pytest.TempPathFactory, cache: Cache
) -> Iterator[Planter]:
    """Of a bfloat16 artifact with TorchScript alone."""
    folder = tmp_path_factory.mktemp("half")
    source = WeightsSource("checkpoint", str(tiny_checkpoint))
    options = BuildOptions(source, ("torchscript",), (2,), dtype="bfloat16", out=folder / "half")
    build(options, lambda line: None, cache)
    (folder / "workspace").mkdir()
    manifest = manifests.read(folder / "half")
    yield Planter(folder / "half", manifest, tiny, folder / "workspace", cache=cache)


class TestHalfPrecision:
    def test_a_fault_that_rounding_hides_is_listed_with_its_numbers(self, half: Planter) -> None:
        hidden = half.verdict(BY_NAME[BY_ITS_LENGTH], "torchscript")
        assert hidden.outcome == "hidden"
        assert "x eager's own rounding; the fault alone" in hidden.note
        assert "in float32 rejected" in hidden.note

    @pytest.mark.parametrize(
        "name",
        [
            "rotary missing on k",
            "LayerNorm eps 1e-12",
            "a LayerNorm bias zeroed",
            "digest of another checkpoint",
            "names another dtype",
        ],
    )
    def test_others_are_rejected(self, half: Planter, name: str) -> None:
        assert half.verdict(BY_NAME[name], "torchscript").outcome == "rejected"

    @pytest.mark.parametrize("name", BY_ROUNDING)
    def test_a_step_in_half_precision_is_seen_apart(self, half: Planter, name: str) -> None:
        found = half.verdict(BY_NAME[name], "torchscript")
        assert found.outcome == "rejected"
        assert any(said.startswith(BY_ROUNDING[name]) for said in (found.by, *found.exactly))

    def test_rounding_to_float16_does_not_apply(self, half: Planter) -> None:
        fault = BY_NAME["weights rounded to float16"]
        assert half.verdict(fault, "torchscript").outcome == "does not apply"

    @pytest.mark.parametrize(
        "harmless", [HARMLESS, ManifestFault("none", "manifest", lambda manifest: manifest)]
    )
    def test_nothing_is_called_hidden_that_float32_accepts(
        self, half: Planter, harmless: Fault
    ) -> None:
        assert half.verdict(harmless, "torchscript").outcome == "accepted"

    def test_a_fault_larger_than_rounding_is_not_called_hidden(
        self, half: Planter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A gate whose half-precision rules broke would accept everything."""
        monkeypatch.setattr("exporter.parity.rules.verdict.Budget.is_met", broken_in_half)
        found = half.verdict(BY_NAME["token dropout a constant 0.88"], "torchscript")
        assert found.outcome == "accepted"


def broken_in_half(budget: Budget, measured: float) -> bool:
    """Only float32 has a ceiling; the other rules accept anything."""
    return measured <= budget.limit if budget.quantity == "relative_l2" else True


def test_a_proof_needs_an_engine_that_passes(
    tiny: Reference, tiny_artifact: Path, cache: Cache, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Where nothing runs, nothing is rejected for its fault."""
    planter = Planter(tiny_artifact, manifests.read(tiny_artifact), tiny, tmp_path, cache=cache)
    for error in (runtime.UnsupportedError("the GPU is taken"), runtime.EngineError("no memory")):
        monkeypatch.setattr("exporter.parity.gate.load", raising(error))
        with pytest.raises(ExportError, match=f"without one it does not pass .*{error}"):
            planter.verdict(BY_NAME["GELU by tanh"], "torchscript")


def raising(error: Exception):  # type: ignore[no-untyped-def]
    def load(*arguments: object, **options: object) -> None:
        raise error

    return load


def test_in_processes(
    tiny_checkpoint: Path, tiny: Reference, tiny_artifact: Path, cache: Cache
) -> None:
    load = partial(load_reference, WeightsSource("checkpoint", str(tiny_checkpoint)))
    manifest = manifests.read(tiny_artifact)
    engines = ["torchscript"]
    found = prove_gate(
        tiny_artifact, manifest, tiny, load=load, engines=engines, cache=cache, jobs=2
    )
    of_loader = [fault for fault in found if fault.group == "loader"]
    assert len(of_loader) == 10
    assert {fault.engine for fault in of_loader} == {EVERY_ENGINE}
    in_engine = [fault for fault in found if fault.group != "loader"]
    planted = faults_of("torchscript")
    assert [fault.fault for fault in in_engine] == [fault.name for fault in planted]
    elsewhere = {fault.fault for fault in found if fault.outcome == "does not apply"}
    assert elsewhere == BY_ROUNDING.keys() | {f.name for f in planted if f.group in NOT_HERE}
    assert {fault.outcome for fault in found if fault.fault not in elsewhere} == {"rejected"}
    load = partial(load_reference, WeightsSource("checkpoint", "/nowhere.pt"))
    with pytest.raises(CheckpointError, match="no such file"):
        prove_gate(tiny_artifact, manifest, tiny, load=load, engines=engines, cache=cache, jobs=2)


def test_an_accepted_fault_fails_the_report() -> None:
    from exporter.parity.report.schema import FaultVerdict, is_passed
    from exporter.parity.rules.verdict import EngineVerdict

    engine = EngineVerdict("onnx", "passed", "")
    rejected = FaultVerdict("a", "graph", "onnx", "rejected")
    accepted = msgspec.structs.replace(rejected, outcome="accepted")
    assert is_passed([engine], [rejected])
    assert not is_passed([engine], [rejected, accepted])
    hidden = msgspec.structs.replace(rejected, outcome="hidden")
    assert not is_passed([engine], [hidden])
    assert not is_passed([EngineVerdict("onnx", "not measured", "no library")], [])
    assert not is_passed([], [])
