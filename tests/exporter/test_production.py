"""The command as the gate runs it: what it writes, and what is said where it cannot."""

from pathlib import Path

import numpy as np
import pytest

from exporter.model.reference import WeightsSource, load_reference
from exporter.parity import production
from exporter.parity.production import rows_of_command
from exporter.parity.rules.rows import Row
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.packs import STREAM, parity_packs
from runtime import manifest as manifests


@pytest.fixture(scope="module")
def stream(tiny_artifact: Path, tiny_checkpoint: Path, cache: Cache):  # type: ignore[no-untyped-def]
    """Of a good engine, the rows by each way; arguments replace what it is compared with."""
    import torch

    pack = parity_packs()[STREAM]
    reference = load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))
    answers = run_eager(reference, {STREAM: pack}, (2,), "mean", torch.float64, cache)[STREAM]
    eager = run_eager(reference, {STREAM: pack}, (2,), "mean", torch.float32, cache)[STREAM]
    manifest = manifests.read(tiny_artifact)

    def run(**changes: object) -> list[Row]:
        arguments = {"pack": pack, "truth": answers, "eager": eager, "device": "cpu", "threads": 1}
        return rows_of_command(tiny_artifact, manifest, "onnx", **{**arguments, **changes})

    return run


def test_a_good_engine(stream) -> None:  # type: ignore[no-untyped-def]
    by_protein, by_residue = stream()
    for row in (by_protein, by_residue):
        assert not row.problem
        assert row.engine.relative_l2 < 2e-6
    assert by_protein.rows == "proteins"
    assert "--concurrency 2" in by_protein.pack
    assert by_residue.rows == "tokens"
    assert "--v1-attention" in by_residue.pack


def test_standard_attention_is_asked_for_in_each_way(stream) -> None:  # type: ignore[no-untyped-def]
    assert all("--v1-attention" in row.pack for row in stream(attention="standard"))


def test_what_the_command_says_is_the_problem(stream) -> None:  # type: ignore[no-untyped-def]
    assert all("device" in row.problem for row in stream(device="tpu"))


def test_a_crash_is_named(stream, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def crash(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("runtime.embed_files.scan", crash)
    assert all(row.problem == "ZeroDivisionError('by nothing')" for row in stream())


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit(143)])
def test_it_ends_with_the_command(stream, monkeypatch, interruption) -> None:  # type: ignore[no-untyped-def]
    def interrupted(*_: object) -> None:
        raise interruption

    monkeypatch.setattr("runtime.embed_files.scan", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        stream()


def test_every_format_is_read_back(tmp_path: Path) -> None:
    from runtime.runner import Embedding
    from runtime.writers import write_embeddings
    from runtime.writers.writing import FORMATS

    random = np.random.default_rng(0)
    pooled = [random.random(4, "float32") for _ in range(3)]
    residues = [random.random((n, 4), "float32") for n in (1, 5, 2)]
    for suffix in FORMATS:
        for values in (pooled, residues):
            path = tmp_path / f"x{suffix}"
            write_embeddings(path, (Embedding(f"p{i}", 7, x) for i, x in enumerate(values)), {})
            file = production._read(path)
            assert file.ids == ["p0", "p1", "p2"]
            assert file.num_tokens == [7, 7, 7]
            assert all(map(np.array_equal, file.proteins, values))
