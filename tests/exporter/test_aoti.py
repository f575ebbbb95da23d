"""The AOTInductor engine: built, loaded, refused, and its faults seen by the gate."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

import runtime
from exporter.formats.aoti.observe import observe
from exporter.formats.aoti.rotation import positions_in
from exporter.formats.dispatcher import Spy
from exporter.model.packed_forward import PackedESM2
from exporter.model.reference import WeightsSource, load_reference
from exporter.parity.gate import Gate
from exporter.parity.prove.faults import faults
from exporter.parity.prove.planter import Planter
from exporter.parity.rules.observed import problems
from exporter.parity.rules.verdict import INTERNALS
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.packs import as_batch, parity_packs
from exporter.planted import GraphFault
from exporter.publish import writable_copy
from runtime import PackedBatch, instructions
from runtime import manifest as manifests

pytestmark = pytest.mark.slow


@pytest.fixture
def compiled(compiled_artifact: Path) -> Path:
    """A verified artifact with this engine alone: ``build`` publishes no other."""
    return compiled_artifact


@pytest.mark.parametrize("attention", ["auto", "standard"])
def test_equals_torchscript(
    compiled: Path, tiny_artifact: Path, batch: PackedBatch, attention: runtime.engine.Attention
) -> None:
    single = PackedBatch.from_tokens([np.array([5])])
    with (
        runtime.load(compiled, "aoti", attention=attention) as engine,
        runtime.load(tiny_artifact, "torchscript", attention=attention) as other,
    ):
        assert engine.spec.attention == other.spec.attention
        for pack in (batch, single):
            found, expected = engine.run(pack).tensors, other.run(pack).tensors
            assert found.keys() == expected.keys()
            for name, values in expected.items():
                error = np.linalg.norm(found[name] - values) / np.linalg.norm(values)
                assert error < 2e-6, name


def test_auto_takes_it_on_a_cpu(compiled: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, which auto prefers")
    with runtime.load(compiled) as engine:
        assert engine.spec.format == "aoti"


def test_another_processor_is_refused_by_name(
    compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifests.read(compiled)
    if manifest.engines["aoti"].instructions != "x86-64-v3":
        pytest.skip("this machine builds for itself alone")
    monkeypatch.setattr(instructions, "processor_flags", lambda: {"sse2"})
    with pytest.raises(runtime.UnsupportedError) as refused:
        runtime.load(compiled, "aoti")
    message = str(refused.value)
    assert message.startswith("cannot load engine 'aoti' of ")
    assert "built for x86-64-v3, this processor lacks abm, avx" in message
    assert "\n" not in message
    with pytest.raises(runtime.EngineError, match="no engine of .* runs here: .*x86-64-v3"):
        runtime.load(compiled)


def test_weights_that_lack_a_tensor_are_refused(compiled: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "artifact"
    writable_copy(compiled, folder)
    state = load_file(folder / "weights.safetensors")
    del state["layers.1.fc1.weight"]
    save_file(state, folder / "weights.safetensors")
    with pytest.raises(runtime.EngineError, match=r"cannot load .*layers.1.fc1.weight"):
        runtime.load(folder, "aoti", check_files=False)


def test_a_damaged_package_is_refused(compiled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    writable_copy(compiled, folder)
    path = folder / "model.pt2"
    path.write_bytes(path.read_bytes()[: 1 << 14])
    with pytest.raises(runtime.EngineError, match=r"cannot load .*model.pt2") as refused:
        runtime.load(folder, "aoti", check_files=False)
    assert "\n" not in str(refused.value)


def test_no_path_of_the_building_machine_is_in_it(compiled: Path) -> None:
    content = (compiled / "model.pt2").read_bytes()
    for path in (Path.cwd(), Path(torch.__file__).parent, Path.home() / ".cache"):
        assert str(path).encode() not in content


@pytest.fixture(scope="module")
def pack() -> PackedBatch:
    return as_batch(parity_packs()["many masks"])


@pytest.fixture
def queries(compiled: Path, pack: PackedBatch) -> torch.Tensor:
    """That the engine's first attention receives."""
    with Spy(6) as spy, runtime.load(compiled, "aoti") as engine:
        engine.run(pack)
    assert spy.first_queries is not None
    return spy.first_queries


def test_positions_read_from_queries_are_those_of_each_protein(
    compiled: Path, pack: PackedBatch, queries: torch.Tensor
) -> None:
    found = positions_in(queries, compiled, manifests.read(compiled), pack)
    lengths = np.diff(pack.cu_seqlens)
    np.testing.assert_array_equal(found, np.concatenate([np.arange(n) for n in lengths]))


def test_a_position_off_by_one_is_seen_in_every_token(
    compiled: Path, pack: PackedBatch, queries: torch.Tensor
) -> None:
    half = queries.shape[-1] // 2
    inv_freq = 10000 ** -(torch.arange(half).double() / half)
    first, second = queries.double().chunk(2, dim=-1)
    cos, sin = inv_freq.cos(), inv_freq.sin()
    moved = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    found = positions_in(moved.float(), compiled, manifests.read(compiled), pack)
    assert np.isnan(found).all()


def test_faults_are_rejected(
    compiled: Path, tiny_checkpoint: Path, cache: Cache, tmp_path: Path, pack: PackedBatch
) -> None:
    """Both in one compilation; each is seen by its own look inside."""
    one, other = (
        next(fault for fault in faults() if fault.name == name)
        for name in ("positions do not restart", "max_seqlen baked from tracing")
    )

    @contextmanager
    def both(packed: PackedESM2) -> Iterator[None]:
        with one.plant(packed), other.plant(packed):  # type: ignore[union-attr,call-arg]
            yield

    reference = load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))
    manifest = manifests.read(compiled)
    planter = Planter(compiled, manifest, reference, tmp_path, cache=cache)
    gate = Gate.prepare(reference, manifest, {"masks": parity_packs()["many masks"]}, cache)
    with planter.planted(GraphFault("both", "packing", both), "aoti") as faulty:
        judged = gate.judge(faulty, manifest, "aoti")
        with (
            runtime.load(faulty, "aoti", check_files=False) as engine,
            observe(faulty, manifest, pack) as seen,
        ):
            engine.run(pack)
    assert INTERNALS in judged.reason
    found = " ".join(problems(seen, gate.oracle["masks"], 2))
    assert "position_ids [" in found
    assert "got max_seqlen" in found


def test_what_it_needs_stands_in_the_manifest(compiled: Path) -> None:
    entry = manifests.read(compiled).engines["aoti"]
    assert entry.op_library == "lib/libesm2_ops.so"
    assert entry.instructions
    assert msgspec.to_builtins(entry)["file"] == "model.pt2"
