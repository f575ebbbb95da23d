from pathlib import Path

import pytest

from benchmarks.contenders import engines_of
from benchmarks.correctness import Truth
from benchmarks.growth import measure_growth, records
from benchmarks.measure import Measurement
from benchmarks.plans import ModelPlan
from benchmarks.results import ModelResult, Setting
from benchmarks.summary import rows_of
from exporter.model.reference import WeightsSource, load_reference
from runtime import manifest as manifests
from tests.benchmarks.fakes import fake_command, fake_entrant

pytestmark = pytest.mark.slow

PLAN = ModelPlan(
    {"mixed": 1200, "short": 300}, search_tokens=1200, sizes=(512, 1024), search_s=60,
    rounds=(2, 5), latency_runs=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def result(tiny_artifact: Path, tiny_checkpoint: Path) -> ModelResult:
    """Engines of a tiny artifact beside a contender that is wrong and one that dies."""
    manifest = manifests.read(tiny_artifact)
    engines = engines_of(tiny_artifact, manifest, cores=2)
    dying = fake_command(on_prepare="if len(proteins) > 1: sys.exit('out of ideas')")
    entrants = [
        fake_entrant("wrong", fake_command()),
        fake_entrant("dying", dying),
        *(engine for engine in engines if engine.name in ("onnx", "onnx@2")),
    ]
    truth = Truth(load_reference(WeightsSource("checkpoint", str(tiny_checkpoint))))
    result = ModelResult("tiny", "tiny", True)
    lines: list[str] = []
    measurement = Measurement(
        result, PLAN, entrants, truth, manifest.architecture, cores=2, say=lines.append
    )
    with measurement.workers():
        measurement.search()
        measurement.latency()
        measurement.scaling()
        measurement.rounds(deadline=0.0)
    assert lines[-1] == "round 2", "the least number of rounds, for the time is over"
    return result


def test_everybody_is_timed_and_judged_in_each_round(result: ModelResult) -> None:
    for workload in result.workloads.values():
        assert len(workload.matrix_rate) == 2
        rows = {row.name: row for row in rows_of(result, workload)}
        assert rows["wrong"].verdict == "WRONG"
        assert rows["onnx"].verdict == rows["onnx@2"].verdict == "ok"
        assert rows["dying"].verdict == "not run: out of ideas"
        for name in ("wrong", "onnx", "onnx@2"):
            timing = workload.timings[name]
            assert len(timing.tokens_s) == len(timing.relative_l2) == 2
            assert min(timing.tokens_s) > 0


def test_the_setting_is_one_that_the_search_tried(result: ModelResult) -> None:
    for name, workload in result.workloads.items():
        timing = workload.timings["onnx@2"]
        tried = [trial.setting for trial in timing.search]
        assert timing.setting in tried
        assert {setting.concurrency for setting in tried} == {2}
        # All of "short" fits the smaller size: the larger would be the same batches.
        assert [setting.max_tokens for setting in tried] == (
            [512, 1024] if name == "mixed" else [512, 1024][: len(tried)]
        )


def test_start_memory_latency_scaling(result: ModelResult) -> None:
    about = result.contenders["onnx"]
    assert 0 < (about.load_s or 0) < (about.first_embedding_s or 0)
    assert 20 < (about.peak_mb or 0) < 2000
    assert result.latency is not None
    assert {name: len(runs) for name, runs in result.latency.runs_ms.items()} == {
        "wrong": 6, "onnx": 6,
    }  # fmt: skip
    assert len(result.scaling["onnx"].one_thread) == len(result.scaling["onnx"].all_cores) == 2


def test_torchscript_takes_one_pack_at_a_time(tiny_artifact: Path) -> None:
    names = [e.name for e in engines_of(tiny_artifact, manifests.read(tiny_artifact), cores=2)]
    assert names == ["onnx", "onnx@2", "torchscript"]


def test_streams(tiny_artifact: Path) -> None:
    growth = measure_growth(tiny_artifact, "onnx@2", Setting(2, 1024), (500, 4000))
    assert [point.tokens for point in growth.points] == [500, 4000]
    for point in growth.points:
        drawn = [len(record.sequence) + 2 for record in records(point.tokens)]
        assert point.tokens <= sum(drawn) <= point.tokens + 2
        assert point.proteins == len(drawn)
        assert point.seconds > 0
        assert 20 < point.peak_mb < 2000
