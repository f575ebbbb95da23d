"""``gpu-check``'s verdict on CUDA graphs: what a card would run, without graphs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime
from benchmarks.gpu_check import graphs
from runtime.engines.torch.cuda_graphs import bucket_of

pytestmark = pytest.mark.slow


def test_its_packs_share_a_graph() -> None:
    buckets = {bucket_of(sum(lengths), len(lengths), max(lengths)) for lengths in graphs.LENGTHS}
    assert len(buckets) == 1
    assert sum(graphs.LENGTHS[0]) != sum(graphs.LENGTHS[1])


def test_without_a_card_its_packs_run(tiny_artifact: Path) -> None:
    found = graphs.check_graphs(tiny_artifact, "torchscript", "cpu")
    assert found == ("not run", "graphs need a card; the packs ran")


def test_what_is_left_of_the_pack_before_is_found(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a graph would give whose inputs were not copied in."""
    engines: list[Any] = []

    def load(*given: object, **options: object) -> object:
        engine: Any = runtime.load(*given, **options)  # type: ignore[arg-type]
        if not engines:
            engines.append(engine)
            return engine
        run, before = engine.run, []

        def stale(pack: runtime.PackedBatch) -> object:
            before.append(pack)
            ids = np.resize(before[0].input_ids, pack.input_ids.shape)
            return run(runtime.PackedBatch(ids, pack.cu_seqlens, pack.max_seqlen))

        engine.run = stale
        return engine

    monkeypatch.setattr(graphs, "load", load)
    status, reason = graphs.check_graphs(tiny_artifact, "torchscript", "cpu")
    assert status == "failed"
    assert reason.startswith("logits of pack 2 with graphs is ")
    assert reason.endswith("expected at most 0.0001")
