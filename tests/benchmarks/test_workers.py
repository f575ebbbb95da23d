import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.correctness import Truth
from benchmarks.processes import Worker, WorkerDiedError
from exporter.model.reference import WeightsSource, load_reference
from exporter.parity.rules.metrics import UNBOUNDED
from tests.benchmarks.fakes import fake_command


def test_an_engine_answers_like_the_oracle(tiny_artifact: Path, tiny_checkpoint: Path) -> None:
    truth = Truth(load_reference(WeightsSource("checkpoint", str(tiny_checkpoint))))
    command = [sys.executable, "-m", "benchmarks.engine_worker", "onnx", tiny_artifact, 1, 2]
    with Worker(command) as worker:
        assert worker.started["concurrency"] == 2
        assert worker.started["versions"].keys() == {"esm2-engines", "onnxruntime"}
        assert 0 < truth.error_of(worker) < 2e-6
        assert worker.ask("time", batches=[[10, 20], [5]])["seconds"] > 0
        assert len(worker.ask("latency", length=9, repeats=3)["latencies_ms"]) == 3
        assert 10 < worker.ask("peak")["peak_mb"] < 2000


@pytest.mark.parametrize(
    "rows", ["np.full((len(sum(map(list, proteins), [])), 48), np.nan)", "np.ones((3, 48))"]
)
def test_nonsense_is_an_unbounded_error(rows: str, tiny_checkpoint: Path) -> None:
    truth = Truth(load_reference(WeightsSource("checkpoint", str(tiny_checkpoint))))
    with Worker([*fake_command(rows), 1, 1]) as worker:
        assert truth.error_of(worker) == UNBOUNDED


def test_a_wrong_answer_is_a_large_error(tiny_checkpoint: Path) -> None:
    truth = Truth(load_reference(WeightsSource("checkpoint", str(tiny_checkpoint))))
    with Worker([*fake_command(), 1, 1]) as worker:
        assert 0.1 < truth.error_of(worker) < UNBOUNDED


def test_a_peer_that_packs_is_given_proteins_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "packing.py").write_text(
        "import numpy as np\n"
        "PACKAGES = ('numpy',)\n"
        "class load_packed:\n"
        "    def __init__(self, folder, threads):\n"
        "        self.instructions = f'{folder} on {threads}'\n"
        "    def run(self, proteins):\n"
        "        assert [len(x) for x in proteins] == [3, 5], proteins\n"
        "        assert all(x.dtype == np.int32 for x in proteins)\n"
        "    def rows(self, proteins):\n"
        "        return np.concatenate(proteins)[:, None]\n"
    )
    code = f"import sys; sys.path[:0] = ['benchmarks/peers', {str(tmp_path)!r}]; import serve\n"
    code += "serve.serve(lambda: serve.peer_of('packing', 'here', 2, 1))"
    with Worker([sys.executable, "-c", code]) as worker:
        assert worker.started["instructions"] == "here on 2"
        assert worker.started["concurrency"] == 1
        assert worker.ask("time", batches=[[3, 5]])["seconds"] > 0
        worker.ask("answer", proteins=[[0, 4, 2], [0, 5, 6, 7, 2]], path=str(tmp_path / "rows.npy"))
    assert np.load(tmp_path / "rows.npy").ravel().tolist() == [0, 4, 2, 0, 5, 6, 7, 2]


def test_what_a_contender_prints_is_no_answer() -> None:
    with Worker([*fake_command(), 1, 1]) as worker:
        assert worker.ask("time", batches=[[3]])["seconds"] >= 0


def test_a_dead_worker_leaves_its_last_words() -> None:
    with pytest.raises(WorkerDiedError, match="no module named|No module named 'absent'"):
        Worker([sys.executable, "-c", "import absent"])


def test_peak_memory_is_not_the_parents() -> None:
    parent = np.ones(40_000_000)  # 320 MB
    code = "import sys; sys.path.insert(0, 'benchmarks/peers'); import serve; print(serve.peak(0))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert parent[0] == 1
    assert float(result.stdout.partition(":")[2].strip(" }\n")) < 150
