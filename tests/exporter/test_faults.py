"""The gate must be able to fail: every planted fault, in every engine, is rejected by name."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import runtime
from exporter.parity.cache import Cache
from exporter.parity.faults import Fault, GraphFault, faults
from exporter.parity.prove import Planter, prove_gate
from exporter.parity.verdict import INTERNALS, TOKENS, WEIGHTS
from exporter.weights import Reference, WeightsSource, load_reference
from runtime import manifest as manifests

GROUPS = {"graph", "packing", "token dropout", "weights", "tokenizer and pooling", "manifest"}
ENGINES = ("torchscript", "onnx")

# What no output can show, and so must be rejected by the check that looks inside.
INVISIBLE = {"max_seqlen baked from tracing": INTERNALS, "positions do not restart": INTERNALS}
# No output shows the first two. The last two are manifests that agree with the folder beside them.
UNSEEN_AT_RUNTIME = {*INVISIBLE, "digest of another checkpoint", "names another dtype"}
REFUSALS = "failed its selftest|was changed after it was built|has schema version|SHA-256 differs"
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
    yield Planter(tiny_artifact, manifests.read(tiny_artifact), tiny, workspace, cache)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fault", faults(), ids=lambda fault: fault.name)
def test_every_fault_is_rejected(planter: Planter, fault: Fault, engine: str) -> None:
    with planter.planted(fault, engine) as faulty:
        found = planter.show(fault, faulty, engine)
        if fault.name not in UNSEEN_AT_RUNTIME:
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
    if fault.group in ("graph", "token dropout", "weights"):
        # By a number too, well over its limit: no exact check is needed to see these.
        assert found.margin is not None
        assert found.margin > 2


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_fault_changed_is_put_back(
    planter: Planter, tiny_artifact: Path, engine: str
) -> None:
    """Else one fault would be rejected for the one before it."""
    manifest = manifests.read(tiny_artifact)
    one_of_each_kind = {type(fault): fault for fault in faults()}
    for fault in one_of_each_kind.values():
        with planter.planted(fault, engine) as faulty:
            pass
    harmless = GraphFault("none", "graph", lambda packed: _nothing())
    assert planter.verdict(harmless, engine).outcome == "accepted"
    names = set(manifest.files) - {manifest.engines[engine].file}
    for name in names:
        assert manifests.file_entry(faulty / name) == manifest.files[name]


def _nothing():  # type: ignore[no-untyped-def]
    from contextlib import nullcontext

    return nullcontext()


def test_a_fault_that_rounding_hides_is_listed_with_its_numbers(
    tiny_checkpoint: Path, tiny: Reference, tmp_path: Path, cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from exporter.build import BuildOptions, build
    from exporter.parity.packs import parity_packs, with_names

    names = ("mixed", "many masks")
    monkeypatch.setattr(
        "exporter.verify.parity_packs", lambda seed: with_names(parity_packs(seed), names)
    )
    source = WeightsSource("checkpoint", str(tiny_checkpoint))
    options = BuildOptions(source, ("torchscript",), (2,), dtype="bfloat16", out=tmp_path / "half")
    build(options, lambda line: None, cache)
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    manifest = manifests.read(tmp_path / "half")
    planter = Planter(tmp_path / "half", manifest, tiny, workspace, cache)
    by_name = {fault.name: fault for fault in faults()}
    hidden = planter.verdict(by_name["LayerNorm eps 1e-12"], "torchscript")
    assert hidden.outcome == "hidden"
    assert "x eager's own rounding; in float32: rejected" in hidden.note
    seen = planter.verdict(by_name["rotary missing on k"], "torchscript")
    assert seen.outcome == "rejected"
    rounded = planter.verdict(by_name["weights rounded to float16"], "torchscript")
    assert rounded.outcome == "does not apply"


def test_in_processes(
    tiny_checkpoint: Path, tiny_artifact: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command does it: a fault that the gate accepts would be reported, not lost."""
    from functools import partial

    load = partial(load_reference, WeightsSource("checkpoint", str(tiny_checkpoint)))
    manifest = manifests.read(tiny_artifact)
    found = prove_gate(tiny_artifact, manifest, load, ["torchscript"], cache, jobs=2)
    assert [fault.fault for fault in found] == [fault.name for fault in faults()]
    assert {fault.outcome for fault in found} == {"rejected"}


def test_an_accepted_fault_fails_the_report() -> None:
    from exporter.parity.report import FaultVerdict, is_passed
    from exporter.parity.verdict import EngineVerdict

    engine = EngineVerdict("onnx", "passed", "")
    rejected = FaultVerdict("a", "graph", "onnx", "rejected")
    accepted = msgspec.structs.replace(rejected, outcome="accepted")
    assert is_passed([engine], [rejected])
    assert not is_passed([engine], [rejected, accepted])
    assert not is_passed([EngineVerdict("onnx", "not measured", "no library")], [])
    assert not is_passed([], [])
