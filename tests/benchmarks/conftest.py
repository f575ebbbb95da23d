import pytest

from benchmarks.results import (
    Contender,
    Growth,
    GrowthPoint,
    Latency,
    ModelResult,
    Run,
    Scaling,
    Setting,
    Timing,
    WorkloadResult,
)


@pytest.fixture
def run() -> Run:
    """A small run by hand: one peer did not run, the fastest engine is wrong."""

    def timing(*tokens_s: float, error: float = 4e-7) -> Timing:
        return Timing(Setting(1, 1024), list(tokens_s), [error] * len(tokens_s))

    mixed = WorkloadResult(
        description="lengths of all kinds", proteins=3, tokens=1000, flops=2e9,
        matrix_rate=[2e10, 1e10],
        timings={
            "fair_esm": timing(1000.0, 500.0),
            "fair_esm_extract": timing(800.0, 400.0),
            "openvino_runtime": timing(2000.0, 1500.0),
            "onnx": timing(6000.0, 3000.0),
            "fast": timing(9000.0, 9000.0, error=3e-3),
            "onnx-int8": timing(8000.0, 8000.0, error=9e-3),
        },
    )  # fmt: skip
    model = ModelResult(
        artifact="tiny-artifact",
        architecture="tiny",
        synthetic=True,
        contenders={
            "fair_esm": Contender(
                "eager fair-esm", "peer", 1e-4, versions={"fair-esm": "2.0.0"},
                load_s=1.5, first_embedding_s=2.5, peak_mb=300.0,
            ),
            "fair_esm_extract": Contender("fair-esm's extract.py defaults", "peer", 1e-4),
            "openvino_runtime": Contender("OpenVINO", "peer", 1e-4),
            "faesm_sdpa": Contender(
                "faESM, SDPA", "peer", 1e-4, not_run="pip install failed: no | wheel"
            ),
            "onnx": Contender("onnx", "engine", 2e-6, load_s=0.2, first_embedding_s=0.4),
            "fast": Contender("fast", "engine", 2e-6),
            "onnx-int8": Contender("onnx-int8", "engine", 2e-2, in_headline=False),
        },
        workloads={"mixed": mixed},
        latency=Latency(302, {"fair_esm": [10.0, 11.0, 30.0], "onnx": [5.0, 6.0, 7.0]}),
        scaling={"onnx": Scaling([1000.0, 1100.0], [2000.0, 1980.0])},
        growth=Growth(
            "onnx",
            [
                GrowthPoint(1_000, 4, 0.5, 100.0),
                GrowthPoint(100_000, 350, 20.0, 200.0),
                GrowthPoint(1_000_000, 3500, 200.0, 220.0),
            ],
        ),
    )  # fmt: skip
    return Run("full", "2001-02-03 04:05", "2 x Some CPU", 2, "3.11", 60.0, 300.0, [model])
