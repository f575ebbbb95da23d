"""``runtime.ray.embed``: rows in, the same rows with vectors or errors out; an engine of actors."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from exporter.signing import Signer
from runtime import manifest as manifests
from runtime.concurrency import Packing
from runtime.engine import EngineSpec
from runtime.errors import (
    ArtifactError,
    EngineError,
    InputError,
    NonFiniteError,
    UnsupportedError,
)
from runtime.loading import load
from runtime.model import load_model
from runtime.packing import PackedBatch
from runtime.pooling import Pool
from runtime.ray import embed
from runtime.ray.artifact import Shipped
from runtime.ray.crew import Crew, Member
from runtime.ray.data import _Embedder
from runtime.ray.engine import RayEngine
from runtime.ray.plan import Plan
from runtime.ray.worker import Description, Loading
from runtime.readers.records import RecordOptions
from runtime.tokenizer import TOKENS
from runtime.trust.whom import VARIABLE
from tests.conftest import random_sequence
from tests.runtime.signing import new_pair

ray = pytest.importorskip("ray", reason="needs ray: pip install 'esm2-engines[ray]'")

# Of Ray's own settings and processes.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]

ROWS = 90
MAX_LENGTH = 60
BAD = {3: "M1K", 8: None, 21: "M" * (MAX_LENGTH + 1)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Gives the folder of temporary files of its node: nothing was unpacked there before."""
    folder = tmp_path_factory.mktemp("node")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setenv("RAY_TMPDIR", tempfile.gettempdir())  # the names of sockets must be short
        ray.init(  # never one that other tests have begun meanwhile
            "local", num_cpus=4, include_dashboard=False, log_to_driver=False,
            logging_level="error", object_store_memory=100 << 20,
        )  # fmt: skip
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield folder
        ray.shutdown()


@pytest.fixture
def table() -> pa.Table:
    random = np.random.default_rng(3)
    sequences: list[str | None] = [
        random_sequence(random, int(random.integers(1, MAX_LENGTH))) for _ in range(ROWS)
    ]
    for row, sequence in BAD.items():
        sequences[row] = sequence
    columns = {
        "number": pa.array(range(ROWS), pa.int16()),
        "protein": sequences,
        "tags": [{"a": [row]} for row in range(ROWS)],
    }
    return pa.table(columns)


def written(dataset: Any, folder: Path) -> pa.Table:
    """By Ray, and read by PyArrow."""
    dataset.write_parquet(str(folder))
    return parquet.read_table(folder).sort_by("number")


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_rows_keep_their_columns(
    pool: Any, ready_artifact: Path, table: pa.Table, tmp_path: Path, cluster: Path
) -> None:
    given = ray.data.from_arrow([table.slice(0, 40), table.slice(40)])
    embedded = embed(
        given, ready_artifact, sequence_column="protein", pool=pool, max_length=MAX_LENGTH,
        batch_size=16, concurrency=2, engine="onnx",
    )  # fmt: skip
    found = written(embedded, tmp_path / "out")
    for name in table.column_names:
        assert found[name].to_pylist() == table[name].to_pylist()
    assert found["number"].type == pa.int16()
    errors = dict(enumerate(found["error"].to_pylist()))
    assert {row for row, error in errors.items() if error} == set(BAD)
    assert "character '1' at position 2" in errors[3]
    assert errors[8] == "the column 'protein' is null"
    assert "61 residues are more than 60" in errors[21]
    with load_model(ready_artifact, engine="onnx", threads=1) as model:
        for row, values in enumerate(found["embedding"].to_pylist()):
            if row in BAD:
                assert values is None
                continue
            expected = model.embed(table["protein"][row].as_py(), pool)
            np.testing.assert_allclose(np.array(values), expected, rtol=1e-4, atol=1e-5)


def test_files_are_sent_where_the_path_is_not_seen(
    ready_artifact: Path, table: pa.Table, cluster: Path
) -> None:
    good = ray.data.from_arrow(table.slice(30, 10))
    sent = embed(good, ready_artifact, sequence_column="protein", ship=True, engine="onnx")
    seal = manifests.read(ready_artifact).manifest_sha256
    shutil.rmtree(ready_artifact)
    assert sent.to_pandas()["error"].isna().all()
    (unpacked,) = cluster.glob(f"esm2-engines-ray-*/{seal}")
    assert manifests.read(unpacked).manifest_sha256 == seal
    assert unpacked.with_name(f"{seal}.checked").read_text().endswith(f" {unpacked}")


def test_actors_trust_whom_the_driver_trusts(
    ready_artifact: Path, table: pa.Table, cluster: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """They take what the driver sends where what they see is another's; and load nothing else."""
    signer = new_pair(tmp_path, "signer")
    (ready_artifact / "README").write_text("signed, and not of the manifest")
    Signer(signer.private).sign(ready_artifact)
    good = ray.data.from_arrow(table.slice(30, 10))
    options: dict[str, Any] = {"sequence_column": "protein", "engine": "onnx"}
    monkeypatch.setenv(VARIABLE, str(signer.public))
    sent = embed(good, ready_artifact, ship=True, **options)
    not_sent = embed(good, ready_artifact, ship=False, **options)
    (ready_artifact / "lib.so").write_bytes(b"added after")
    for unpacked in cluster.glob("esm2-engines-ray-*"):
        shutil.rmtree(unpacked)
    with pytest.raises(ray.exceptions.RayError, match="is not on this node"):
        not_sent.to_pandas()
    assert sent.to_pandas()["error"].isna().all()
    with pytest.raises(ArtifactError, match=r"lib\.so was added after it was signed"):
        embed(good, ready_artifact, **options)


def test_an_engine_of_actors_is_an_engine(
    ready_artifact: Path, sequences: list[str], cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On nodes that do not see the artifact; what it returns is the caller's."""
    elsewhere = cluster / "not here"
    of = Shipped.of
    monkeypatch.setattr(Shipped, "of", lambda _, manifest: of(elsewhere, manifest))
    for unpacked in cluster.glob("esm2-engines-ray-*"):
        shutil.rmtree(unpacked)
    manifest = manifests.read(ready_artifact)
    loading = Loading("onnx", "cpu", "auto", 1, 1, False, False)
    plan = Plan("cpu", 2, 1, Packing(1, 4096))
    batch = PackedBatch.from_sequences(sequences)
    layer = manifest.layers[-1]
    with (
        load(ready_artifact, "onnx", "cpu", threads=1) as here,
        RayEngine(ready_artifact, manifest, loading, plan) as there,
    ):
        assert (there.size, there.concurrency) == (2, 4)
        assert there.spec == here.spec
        for how in ("mean", "none"):
            values = there.embed(batch, layer, how)
            np.testing.assert_array_equal(values, here.embed(batch, layer, how))
            values += 1
        outputs, expected = there.run(batch).tensors, here.run(batch).tensors
        assert outputs.keys() == expected.keys()
        for name, tensor in outputs.items():
            np.testing.assert_array_equal(tensor, expected[name])
        with pytest.raises(InputError, match="pool must be one of"):
            there.embed(batch, layer, "sum")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="closed"):
        there.run(batch)


@pytest.mark.slow
def test_a_pack_that_kills_each_actor_ends_the_run(
    ready_artifact: Path, batch: PackedBatch, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    borrow = Crew._borrow

    def borrow_and_kill(self: Crew) -> Member:
        member = borrow(self)
        os.kill(member.description.pid, signal.SIGKILL)
        return member

    monkeypatch.setattr(Crew, "_borrow", borrow_and_kill)
    loading = Loading("onnx", "cpu", "auto", 1, 1, False, False)
    plan = Plan("cpu", 1, 1, Packing(1, 4096))
    manifest = manifests.read(ready_artifact)
    with (
        RayEngine(ready_artifact, manifest, loading, plan) as there,
        pytest.raises(EngineError, match="4 actors died one after the other under the same pack"),
    ):
        there.embed(batch, manifest.layers[-1], "mean")


def test_actors_that_differ_are_named() -> None:
    spec = EngineSpec(
        "onnx", "x", "cpu", "float32", (6,), None, "native (avx512)", "", "onnxruntime 1.31.1",
        False, 320,
    )  # fmt: skip
    one = Description(spec, 1, 4096, "0.1.0", "a", 1)
    assert one.differences(replace(one, host="b", pid=2)) == []
    other = replace(one, host="b", spec=replace(spec, attention="native (avx2)"), version="0.2.0")
    assert other.differences(one) == [
        "attention native (avx2) on b, native (avx512) on a", "esm2-engines 0.2.0 on b, 0.1.0 on a",
    ]  # fmt: skip


def test_what_cannot_be_used(ready_artifact: Path, tmp_path: Path, cluster: Path) -> None:
    given = ray.data.from_items([{"sequence": "MKT"}])
    with pytest.raises(InputError, match="pool must be one of"):
        embed(given, ready_artifact, pool="sum")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="device cuda:1 with Ray: Ray chooses the cards"):
        embed(given, ready_artifact, device="cuda:1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch_size must be a whole number"):
        embed(given, ready_artifact, batch_size=0)
    with pytest.raises(ArtifactError, match="is not an artifact"):
        embed(given, tmp_path)


@pytest.mark.parametrize("raised", [NonFiniteError, UnsupportedError])
def test_a_pack_that_fails_says_which_row_it_is(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, raised: type[Exception]
) -> None:
    seal = manifests.read(artifact, check_files=False).manifest_sha256
    loading = Loading("onnx", "cpu", "auto", 1, 1, False, False)
    embedder = _Embedder(
        Shipped(str(artifact), seal, "a run"), None, loading, ("sequence", "embedding", "error"),
        {"max_tokens": None, "pool": "mean", "layer": None}, RecordOptions(),
    )  # fmt: skip
    original = embedder._engine.embed

    def failing(batch: PackedBatch, layer: int, how: Pool) -> np.ndarray:
        if TOKENS.index("W") in batch.input_ids:
            raise raised("the engine returned NaN")
        return original(batch, layer, how)

    monkeypatch.setattr(embedder._engine, "embed", failing)
    rows = embedder(pa.table({"sequence": ["MKT", "MWK", "GGA", None]}))
    assert rows["error"].to_pylist() == [
        None, "the engine returned NaN", None, "the column 'sequence' is null",
    ]  # fmt: skip
    assert [vector is None for vector in rows["embedding"].to_pylist()] == [
        False,
        True,
        False,
        True,
    ]
