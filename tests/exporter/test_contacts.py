"""Contacts: the op against its formula, engines against fair-esm's own head, and faults of it."""

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from esm.modules import apc, symmetrize

import runtime
from exporter.build import build
from exporter.build_options import BuildOptions
from exporter.errors import CheckpointError, ExportError
from exporter.formats import native
from exporter.model.reference import Reference, WeightsSource, load_reference
from exporter.parity.gate import Gate
from exporter.parity.prove.faults import faults_of
from exporter.parity.prove.planter import Planter
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.packs import Protein
from exporter.planted import Fault
from runtime import manifest as manifests
from runtime.ops import contacts, varlen_attention
from runtime.packing import PackedBatch
from runtime.pairs import CONTACTS, as_map, pair_bounds
from tests.conftest import MadeOnce, few_packs

OP = torch.ops.esm2.add_contacts
FAULTS = {
    engine: [fault for fault in faults_of(engine) if fault.group == "contacts"]
    for engine in ("torchscript", "onnx")
}
PLANTED = [
    pytest.param(fault, engine, id=f"{fault.name}-{engine}")
    for engine, faults in FAULTS.items()
    for fault in faults
]


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> Reference:
    return load_reference(WeightsSource("checkpoint", str(tiny_checkpoint), contacts=True))


@pytest.fixture(scope="module")
def artifact(tiny_checkpoint: Path, made_once: MadeOnce, cache: Cache) -> Path:
    def make(folder: Path) -> None:
        source = WeightsSource("checkpoint", str(tiny_checkpoint), contacts=True)
        targets = "torchscript", "onnx", "aoti"
        build(BuildOptions(source, targets, (0, 2), "mean", out=folder), lambda line: None, cache)

    return made_once("contacts", make)


@pytest.fixture(scope="module")
def planter(
    tiny: Reference, artifact: Path, cache: Cache, tmp_path_factory: pytest.TempPathFactory
) -> Planter:
    workspace = tmp_path_factory.mktemp("faults")
    return Planter(artifact, manifests.read(artifact), tiny, workspace, cache=cache)


@pytest.fixture
def native_op() -> Iterator[None]:
    varlen_attention.use_native(native.compile_libraries() / native.TORCH_LIBRARY)
    yield


def arguments(lengths: list[int], heads: int, dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    q, k = (torch.randn(sum(lengths), heads, dim, generator=random).to(dtype) for _ in range(2))
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    num_pairs = int(pair_bounds(bounds.numpy())[-1])
    is_kept = torch.rand(sum(lengths), generator=random) > 0.1
    logits, weight = (torch.randn(n, generator=random) for n in (num_pairs, heads))
    return [logits, 3 * q, k, bounds, is_kept, weight]


def by_definition(
    logits: torch.Tensor, q: torch.Tensor, k: torch.Tensor, bounds: torch.Tensor, scale: float,
    is_kept: torch.Tensor, weight: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """In float64, by fair-esm's own functions."""
    found = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        query, key = (x[start:end].double().transpose(0, 1) for x in (q, k))
        maps = torch.softmax(query @ key.transpose(1, 2) * scale, -1)
        kept = is_kept[start:end].double()
        maps = (maps * kept * kept[:, None])[:, 1:-1, 1:-1]
        share = torch.einsum("h,hij->ij", weight.double(), apc(symmetrize(maps)))
        found.append(share[torch.ones_like(share, dtype=torch.bool).triu()])
    return logits.double() + torch.cat(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("lengths", "heads", "dim"),
    [([9, 4, 20, 2, 1, 66, 67], 4, 16), ([130], 3, 20), ([300, 41], 2, 64), ([40], 5, 24)],
)
def test_the_op_adds_what_the_formula_says(
    lengths: list[int], heads: int, dim: int, dtype: torch.dtype, native_op: None
) -> None:
    logits, q, k, bounds, is_kept, weight = arguments(lengths, heads, dim, dtype)
    given = q, k, bounds, dim**-0.5, is_kept, weight
    expected = by_definition(logits, *given)
    for op in (contacts.in_torch, OP):
        found = op(logits, *given)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-6)


def test_the_native_op_gives_the_same_bits_whatever_the_threads(native_op: None) -> None:
    logits, q, k, bounds, is_kept, weight = arguments([700, 300, 41], 4, 16, torch.float32)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(OP(logits, q, k, bounds, 0.25, is_kept, weight))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_the_op_is_one_that_pytorch_can_export() -> None:
    logits, q, k, bounds, is_kept, weight = arguments([9, 4], 2, 8, torch.float32)
    torch.library.opcheck(OP.default, (logits, q, k, bounds, 0.3, is_kept, weight))


def test_the_oracle_is_fair_esms_predict_contacts(tiny: Reference) -> None:
    """Layer by layer, and the same numbers."""
    proteins = [Protein("MKTAYIAKQRQISFVKSHFSRQ"), Protein("MK<mask>AV<eos>GGW"), Protein("A")]
    found = run_eager(tiny, {"pack": proteins}, (2,), "mean", torch.float32)["pack"]
    bounds = pair_bounds(found.cu_seqlens)
    for i, protein in enumerate(proteins):
        tokens = torch.tensor([[0, *tiny.alphabet.encode(protein.sequence), 2]])
        with torch.no_grad():
            expected = tiny.model.predict_contacts(tokens)[0].numpy()
        pairs = found.tensors[CONTACTS][bounds[i] : bounds[i + 1], 0]
        np.testing.assert_allclose(as_map(pairs), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("engine", ["torchscript", "onnx", "aoti"])
def test_every_engine_gives_fair_esms_contacts(
    artifact: Path, tiny: Reference, engine: str
) -> None:
    manifest = manifests.read(artifact)
    assert manifest.gives(CONTACTS)
    assert manifest.weights.contact_head_sha256
    batch = PackedBatch.from_sequences(["MKTAYIAKQRQISFVKSHFSRQ" * 2, "MKV", "G"])
    with runtime.load(artifact, engine, "cpu") as loaded, torch.no_grad():
        pairs = loaded.run(batch).tensors[CONTACTS][:, 0]
        bounds = pair_bounds(batch.cu_seqlens)
        for i, (start, end) in enumerate(pairwise(batch.cu_seqlens)):
            tokens = torch.from_numpy(batch.input_ids[start:end])[None]
            expected = tiny.model.predict_contacts(tokens)[0].numpy()
            found = as_map(pairs[bounds[i] : bounds[i + 1]])
            np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


def test_onnx_runtime_adds_a_layers_share_before_the_next_layer_runs(
    artifact: Path, tmp_path: Path
) -> None:
    """Else the queries and keys of all layers wait in memory."""
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(artifact / "lib" / native.ONNXRUNTIME_LIBRARY))
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(artifact / "model.onnx", options)
    batch = PackedBatch.from_tokens([np.array([0, 5, 6, 7, 2])], ["a"])
    session.run(None, {
        "input_ids": batch.input_ids, "cu_seqlens": batch.cu_seqlens,
        "max_seqlen": np.array(batch.max_seqlen, np.int64),
    })  # fmt: skip
    ran = [event.get("args", {}).get("op_name") for event in events_of(session.end_profiling())]
    ours = [name for name in ran if name in ("AddContacts", "VarlenAttention")]
    assert ours == ["AddContacts", "VarlenAttention"] * 2


def events_of(profile: str) -> list[dict[str, Any]]:
    """Of kernels, in the order in which they ran."""
    events: list[dict[str, Any]] = json.loads(Path(profile).read_text())
    return sorted(
        (event for event in events if event["name"].endswith("_kernel_time")),
        key=lambda event: event["ts"],
    )


def test_onnx_stands_alone_without_the_native_op(
    artifact: Path, tiny: Reference, cache: Cache, tmp_path: Path
) -> None:
    """Its standard ops pass the gate, as ONNX Runtime runs them anywhere."""
    folder = tmp_path / "alone"
    shutil.copytree(artifact, folder)
    manifest = manifests.read(artifact)
    alone = msgspec.structs.replace(manifest.engines["onnx"], op_library=None)
    manifest = msgspec.structs.replace(manifest, engines={"onnx": alone})
    manifests.write(manifest, folder)
    verdict = Gate.prepare(tiny, manifest, few_packs(), cache).judge(folder, manifest, "onnx")
    assert verdict.status == "passed", verdict.reason


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "engine"), PLANTED)
def test_every_fault_is_rejected_for_its_contacts(
    planter: Planter, fault: Fault, engine: str
) -> None:
    found = planter.verdict(fault, engine)
    assert found.outcome == "rejected", found
    assert found.margin is not None
    assert found.margin > 2


def test_an_artifact_without_contacts_is_not_asked_for_them(
    tiny_artifact: Path, planter: Planter
) -> None:
    manifest = manifests.read(tiny_artifact)
    assert all(fault.applies(manifest) for of in FAULTS.values() for fault in of)
    assert {len(of) for of in FAULTS.values()} == {5}


class TestWeights:
    def test_a_checkpoint_without_a_contact_head_is_refused(
        self, tiny_checkpoint: Path, tmp_path: Path
    ) -> None:
        contents = torch.load(tiny_checkpoint, weights_only=False)
        for name in [name for name in contents["model"] if "contact_head" in name]:
            del contents["model"][name]
        path = tmp_path / "bare.pt"
        torch.save(contents, path)
        load_reference(WeightsSource("checkpoint", str(path)))
        with pytest.raises(CheckpointError, match=r"NAME-contact-regression.pt"):
            load_reference(WeightsSource("checkpoint", str(path), contacts=True))

    def test_fair_esms_own_file_beside_the_checkpoint_is_read(
        self, tiny_checkpoint: Path, tiny: Reference, tmp_path: Path
    ) -> None:
        contents = torch.load(tiny_checkpoint, weights_only=False)
        prefix = "encoder.sentence_encoder."
        head = {
            name.removeprefix(prefix): contents["model"].pop(name)
            for name in list(contents["model"])
            if "contact_head" in name
        }
        torch.save(contents, tmp_path / "model.pt")
        torch.save({"model": head}, tmp_path / "model-contact-regression.pt")
        found = load_reference(
            WeightsSource("checkpoint", str(tmp_path / "model.pt"), contacts=True)
        )
        assert found.origin.contact_head_sha256 == tiny.origin.contact_head_sha256

    def test_verifying_with_another_contact_head_is_refused(
        self, artifact: Path, tiny_checkpoint: Path, tmp_path: Path
    ) -> None:
        from exporter.model.reference import load_original

        contents = torch.load(tiny_checkpoint, weights_only=False)
        name = "encoder.sentence_encoder.contact_head.regression.bias"
        contents["model"][name] = contents["model"][name] + 1
        torch.save(contents, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match="digest of its contact head"):
            load_original(artifact, manifests.read(artifact), str(tmp_path / "other.pt"))


@pytest.mark.parametrize("target", ["tensorrt", "onnx-cuda"])
def test_formats_that_give_no_contacts_say_so(tiny_checkpoint: Path, target: str) -> None:
    source = WeightsSource("checkpoint", str(tiny_checkpoint), contacts=True)
    with pytest.raises(ExportError, match=f"target {target} gives no contacts"):
        build(BuildOptions(source, (target,)), lambda line: None)
