"""``make gpu-check``, rehearsed on the CPU with a tiny model by the code that a card would run."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from benchmarks.gpu_check import html, results
from benchmarks.gpu_check.answers import MAX_RELATIVE_L2, compare
from benchmarks.gpu_check.contenders import Packed
from benchmarks.gpu_check.engines import ENGINES, why_not
from benchmarks.gpu_check.gate import artifact_with, run_gate
from benchmarks.gpu_check.packages import NEEDED
from benchmarks.gpu_check.plan import (
    DTYPES,
    NAMES,
    Job,
    Model,
    attention_of,
    benchmarks_of,
    gates_of,
    models_of,
    steps_of,
)
from benchmarks.gpu_check.results import Benchmark, Machine, Parity, Report, Step, Timing
from benchmarks.gpu_check.schedule import Schedule
from benchmarks.gpu_check.summary import aims_of, is_passed, rows_of
from benchmarks.gpu_check.synchronisation import optimised_nodes
from benchmarks.gpu_check.terminal import table
from benchmarks.gpu_check.worker import status_of
from benchmarks.limit import flops
from exporter.build import BuildOptions
from exporter.parity.report.schema import ParityError
from exporter.parity.report.schema import Report as Parities
from exporter.parity.rules.verdict import EngineVerdict
from exporter.parity.truth.packs import Pack, parity_packs, with_names
from runtime import load
from runtime.manifest import Architecture

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without one")
WITH_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def gpu_check(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", *map(str, arguments)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def run_tiny(model: object, out: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return gpu_check(
        "--device", "cpu", "--models", model, "--dtypes", "float32", "--tokens", "64,128",
        "--out", out, *arguments,
    )  # fmt: skip


# --- The whole command ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rehearsed(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("rehearsal") / "report"
    return out, run_tiny(tiny_checkpoint, out, "--minutes", 10)


@pytest.fixture(scope="module")
def report(rehearsed: tuple[Path, subprocess.CompletedProcess[str]]) -> Report:
    return results.read(rehearsed[0] / results.FILE_NAME)


def test_a_rehearsal_passes(rehearsed: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, ended = rehearsed
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "PASSED: 5 passed, 0 failed, 2 not run" in ended.stdout
    assert sorted(path.name for path in out.iterdir()) == [
        "gpu-report.html", "gpu-report.json", "logs",
    ]  # fmt: skip


def test_kernels_were_judged(report: Report) -> None:
    kernels = [step for step in report.steps if step.kind == "attention"]
    assert {(step.engine, step.dtype): step.status for step in kernels} == {
        ("auto", "float32"): "passed", ("standard", "float32"): "passed",
    }  # fmt: skip
    assert all(step.kernel and step.kernel.head_dims == 5 for step in kernels)


def test_every_engine_went_through_the_whole_gate(report: Report) -> None:
    gates = {step.engine: step for step in report.steps if step.kind == "gate"}
    assert gates.keys() == {"torchscript", "onnx"}
    for step in gates.values():
        assert (step.status, step.dtype, step.reason) == ("passed", "float32", "")
        assert step.parity is not None
        assert step.parity.packs == 15
        assert step.parity.device == "cpu"
        assert 0 < step.parity.worst_relative_l2 < 2e-6
        assert 0 < step.parity.worst_ratio_to_eager <= 2


def test_what_a_cpu_cannot_show_is_not_run(report: Report) -> None:
    waits = [step for step in report.steps if step.kind == "synchronisation"]
    assert {step.engine: step.status for step in waits} == {
        "torchscript": "not run", "onnx": "not run",
    }  # fmt: skip
    assert all(step.reason for step in waits)
    assert report.machine.device == "cpu"
    assert "rehearsal" in report.machine.name


def test_everybody_is_measured_on_the_same_tokens(report: Report) -> None:
    (step,) = [step for step in report.steps if step.kind == "benchmark"]
    found = step.benchmark
    assert found is not None
    labels = [timing.label for timing in found.timings]
    assert labels[:2] == ["eager fair-esm", "Hugging Face, SDPA"]
    assert {"torchscript, 64 a pack", "torchscript, 128 a pack", "onnx, 128 a pack"} < set(labels)
    assert "torchscript, 128 a pack, outputs left on the card" in labels
    for timing in found.timings:
        assert timing.problem == ""
        assert len(timing.tokens_s) == len(found.timings[0].tokens_s) >= 1
        assert min(timing.tokens_s) > 0
        assert timing.relative_l2 is not None
        assert timing.relative_l2 <= MAX_RELATIVE_L2
        assert timing.searched.keys() <= {8, 32, 128}
        assert bool(timing.searched) == (timing.role in ("fair-esm", "hugging face"))
    assert found.timings[0].relative_l2 == 0
    assert found.tokens >= 256
    assert found.matrix_rate > 1e8


def test_nothing_of_this_machine_is_in_the_report(
    rehearsed: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    for name in (results.FILE_NAME, html.FILE_NAME):
        text = (rehearsed[0] / name).read_text()
        assert str(ROOT) not in text
        assert str(rehearsed[0]) not in text


def test_a_failing_step_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not a checkpoint")
    ended = run_tiny(broken, tmp_path / "out")
    assert ended.returncode == 1
    report = results.read(tmp_path / "out" / results.FILE_NAME)
    by_kind = {step.kind: step for step in report.steps}
    assert by_kind["gate"].status == "failed"
    assert "broken.pt is not a PyTorch checkpoint" in by_kind["gate"].reason
    assert by_kind["benchmark"].status == "not run"
    assert by_kind["benchmark"].reason == "no engine of this model passed the gate"
    assert (
        "broken.pt is not a PyTorch checkpoint" in (tmp_path / "out" / html.FILE_NAME).read_text()
    )


def test_without_time_every_step_is_listed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ended = run_tiny(tiny_checkpoint, tmp_path, "--minutes", 0)
    assert ended.returncode == 1
    report = results.read(tmp_path / results.FILE_NAME)
    assert len(report.steps) == 7
    assert {(step.status, step.reason) for step in report.steps} == {
        ("not run", "no time was left")
    }


@WITHOUT_GPU
def test_without_a_card_it_is_one_line(tmp_path: Path) -> None:
    ended = gpu_check("--device", "cuda", "--out", tmp_path / "out")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: no card: PyTorch ")
    assert line.endswith("or rehearse with --device cpu")
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_one_line(fresh_python: Callable[..., object]) -> None:
    code = "import runpy; runpy.run_module('benchmarks.gpu_check', run_name='__main__')"
    ended = fresh_python(code, blocked=("esm", "msgspec"), cwd=ROOT)
    assert ended.returncode == 2  # type: ignore[attr-defined]
    (line,) = ended.stderr.splitlines()  # type: ignore[attr-defined]
    assert "not installed: fair-esm, msgspec." in line
    assert "WHEELS=FOLDER" in line


def test_nothing_else_is_needed_to_start(fresh_python: Callable[..., object]) -> None:
    """Every module of a rehearsal can be imported without what is not in the list."""
    optional = (
        "transformers", "onnxscript", "triton", "pyarrow", "h5py", "psutil", "openvino", "isal",
        "backports",
    )  # fmt: skip
    assert not NEEDED.keys() & set(optional)
    code = (
        "import benchmarks.gpu_check.cli, benchmarks.gpu_check.worker\n"
        "import benchmarks.gpu_check.throughput, benchmarks.gpu_check.synchronisation\n"
        "import exporter.formats.torchscript.export, exporter.parity.report.html\n"
    )
    ended = fresh_python(code, blocked=optional, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr  # type: ignore[attr-defined]


@pytest.mark.gpu
@WITH_GPU
def test_on_a_card(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ended = gpu_check(
        "--models", tiny_checkpoint, "--tokens", "512,1024", "--minutes", 8, "--out", tmp_path
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


# --- The plan -----------------------------------------------------------------------------------


def test_the_order_in_which_gates_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu_check.plan.why_not", lambda *_: "")
    jobs = gates_of(models_of(NAMES), ["float32", "bfloat16", "float16"], "cuda")
    order = [(job.model.name, job.dtype) for job in jobs]
    pairs = [pair for pair, again in zip(order[::2], order[1::2], strict=True) if pair == again]
    assert pairs[:6] == [(name, dtype) for name in ("8M", "650M") for dtype in DTYPES]
    assert [name for name, _ in pairs[6::3]] == ["35M", "150M", "3B"]
    assert [job.engines for job in jobs[:2]] == [
        ("torchscript", "onnx-cuda", "tensorrt"), ("aoti-cuda",),
    ]  # fmt: skip


def test_steps_are_those_of_the_jobs() -> None:
    models = models_of(["8M"])
    steps = steps_of(models, DTYPES, "cpu")
    keys = {step.key for step in steps}
    assert len(keys) == len(steps) == 19
    for job in [attention_of(DTYPES, "cpu"), *gates_of(models, DTYPES, "cpu")]:
        assert {step.key for step in job.steps()} <= keys
    (impossible,) = [
        step for step in steps if (step.kind, step.dtype) == ("gate", "bfloat16")
        and step.engine == "onnx"
    ]  # fmt: skip
    assert impossible.reason == "onnxruntime has no kernels for CPUs in bfloat16"


def test_each_engine_is_measured_in_the_first_dtype_that_it_passed_in() -> None:
    passed = [("torchscript", "float32"), ("torchscript", "bfloat16"), ("onnx", "float16")]
    steps = [Step("gate", "8M", dtype, engine, "passed") for engine, dtype in passed]
    steps.append(Step("gate", "35M", "float32", "onnx", "failed"))
    jobs = benchmarks_of(models_of(["35M", "8M"]), [16], "cpu", steps)
    assert {job.model.name: job.engines for job in jobs} == {
        "8M": ("torchscript:bfloat16", "onnx:float16"), "35M": (),
    }  # fmt: skip


def test_why_an_engine_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not("torchscript", "bfloat16", "cuda") == ""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "no CUDAExecutionProvider" in why_not("onnx-cuda", "float16", "cuda")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert why_not("onnx-cuda", "float16", "cuda") == ""
    assert "packed attention in bfloat16" in why_not("onnx-cuda", "bfloat16", "cuda")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "triton" in why_not("aoti-cuda", "float32", "cuda")


def test_a_model_that_is_none() -> None:
    with pytest.raises(ValueError, match="or a checkpoint's path, got '9B'"):
        models_of(["8M", "9B"])


# --- Processes ----------------------------------------------------------------------------------


def scheduled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: str, seconds: float,
    models: tuple[str, ...] = ("a", "b"), engines: tuple[str, ...] = ("onnx",),
    note: Callable[[list[Step]], None] = lambda steps: None,
) -> list[Step]:  # fmt: skip
    """Runs the models' gates with ``worker`` as the code of each process."""
    (tmp_path / "benchmarks" / "gpu_check").mkdir(parents=True)
    for name in ("__init__", "gpu_check/__init__"):
        (tmp_path / "benchmarks" / f"{name}.py").touch()
    (tmp_path / "benchmarks" / "gpu_check" / "worker.py").write_text(worker)
    monkeypatch.setattr("benchmarks.gpu_check.schedule.ROOT", tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    gated = [Model(name, "checkpoint", "x") for name in models]
    jobs = [Job("gate", model, "cpu", "float32", engines) for model in gated]
    found: list[Step] = []

    def done(steps: list[Step]) -> None:
        found.extend(steps)
        note(steps)

    Schedule(work, tmp_path, done).run(jobs, 2, time.perf_counter() + seconds)
    return found


REPORT_THE_GATE = """
import json, os, signal, sys, time
job, results = json.loads(sys.argv[1]), sys.argv[2]
name = job["model"]["name"]
step = dict(kind="gate", model=name, dtype="float32", engine="onnx", status="passed")
open(results, "a").write(json.dumps(step) + "\\n" + '{"kind": "ga')
"""


def test_a_crash_keeps_what_was_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = REPORT_THE_GATE + "os.kill(os.getpid(), signal.SIGSEGV)"
    steps = scheduled(tmp_path, monkeypatch, worker, 60)
    assert len(steps) == 4
    for step in steps:
        expected = {
            "gate": ("passed", ""),
            "synchronisation": ("failed", "its process was ended by SIGSEGV"),
        }[step.kind]
        assert (step.status, step.reason) == expected


def test_what_is_late_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.perf_counter()
    steps = scheduled(tmp_path, monkeypatch, REPORT_THE_GATE + "time.sleep(100)", 2)
    assert time.perf_counter() - started < 20
    late = [step for step in steps if step.kind == "synchronisation"]
    assert {step.status for step in late} == {"not run"}
    assert all(step.reason.endswith("s: no time was left") for step in late)


def test_an_engine_of_a_model_never_runs_twice_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule(tmp_path, tmp_path, lambda steps: None)
    running: list[str] = []
    seen: list[tuple[str, ...]] = []

    class Process:
        polls = 0

        def poll(self) -> int | None:
            seen.append(tuple(running))
            self.polls += 1
            return 0 if self.polls > 2 else None

    def start(job: Job, at_once: int) -> object:
        running.append(job.model.name)
        return type("Running", (), {"job": job, "process": Process()})()

    def end(one: object) -> list[Job]:
        running.remove(one.job.model.name)  # type: ignore[attr-defined]
        return []

    monkeypatch.setattr(schedule, "_start", start)
    monkeypatch.setattr(schedule, "_collect", lambda one: None)
    monkeypatch.setattr(schedule, "_end", end)
    models = [Model(name, "checkpoint", "x") for name in ("a", "b")]
    jobs = [Job("gate", model, "cpu", dtype, ("onnx",)) for model in models for dtype in DTYPES]
    schedule.run(jobs, 4, time.perf_counter() + 60)
    assert ("a", "b") in seen
    assert all(len(set(names)) == len(names) for names in seen)


CRASH_OF_THE_SECOND = """
import json, os, signal, sys, time
job, results = json.loads(sys.argv[1]), sys.argv[2]
for engine in job["engines"]:
    if engine == "aoti-cuda":
        os.kill(os.getpid(), signal.SIGKILL)
    for kind in ("gate", "synchronisation"):
        step = dict(kind=kind, model="a", dtype="float32", engine=engine, status="passed")
        open(results, "a").write(json.dumps(step) + "\\n")
"""


def test_who_crashes_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = ("torchscript", "aoti-cuda", "onnx-cuda")
    steps = scheduled(tmp_path, monkeypatch, CRASH_OF_THE_SECOND, 60, ("a",), engines)
    killed = ("failed", "its process was ended by SIGKILL")
    assert {(step.kind, step.engine): (step.status, step.reason) for step in steps} == {
        (kind, engine): killed if engine == "aoti-cuda" else ("passed", "")
        for kind in ("gate", "synchronisation")
        for engine in engines
    }


def test_a_step_is_in_the_report_while_its_process_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a check that is killed itself leaves what was found."""
    worker = REPORT_THE_GATE.replace(' + \'{"kind": "ga\'', "") + "time.sleep(100)"
    seen: list[tuple[str, float]] = []
    started = time.perf_counter()

    def note(steps: list[Step]) -> None:
        seen.extend((step.kind, time.perf_counter() - started) for step in steps)

    scheduled(tmp_path, monkeypatch, worker, 6, ("a",), note=note)
    (gate,) = [moment for kind, moment in seen if kind == "gate"]
    (late,) = [moment for kind, moment in seen if kind == "synchronisation"]
    assert gate < 5 < late


# --- The gate -----------------------------------------------------------------------------------


def judged(**statuses: str) -> Parities:
    """A parity report that gives engines these statuses."""
    verdicts = [
        EngineVerdict(name, status, f"{name} is {status}")  # type: ignore[arg-type]
        for name, status in statuses.items()
    ]
    return Parities(
        1, "x", False, True, "x", 2, "float32", [2], None, 0, {}, {}, {}, [], verdicts
    )  # fmt: skip


def gated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Callable[[str], Parities]
) -> dict[str, Step]:
    """The step of each of three engines."""

    def fake(options: BuildOptions, say: object, cache: object) -> tuple[Path, Parities]:
        assert (options.device, options.dtype) == ("cpu", "float32")
        (engine,) = options.targets
        return Path(), build(engine)

    monkeypatch.setattr("benchmarks.gpu_check.gate.build", fake)
    monkeypatch.setattr("benchmarks.gpu_check.gate.ENGINES", dict.fromkeys("abc", ENGINES["onnx"]))
    job = Job("gate", Model("m", "checkpoint", "x"), "cpu", "float32", ("a", "b", "c"))
    steps: list[Step] = []
    for engine in job.engines:
        run_gate(job, engine, tmp_path, steps.append)
    return {step.engine: step for step in steps}


def one_pack(seed: int) -> dict[str, Pack]:
    return with_names(parity_packs(seed), ["one residue"])


def test_an_engine_that_fails_the_gate_does_not_cost_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(engine: str) -> Parities:
        if engine == "b":
            raise ParityError("b differs", judged(b="failed"))
        if engine == "c":
            raise ParityError("c cannot run", judged(c="not measured"))
        return judged(a="passed")

    steps = gated(tmp_path, monkeypatch, build)
    assert {engine: step.status for engine, step in steps.items()} == {
        "a": "passed", "b": "failed", "c": "not run",
    }  # fmt: skip
    assert (steps["b"].reason, steps["c"].reason) == ("b is failed", "c is not measured")


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyError("no kernel\nfor this"), "failed", "KeyError: "),
        (ParityError("overflow in layer 3"), "failed", "overflow in layer 3"),
        (torch.OutOfMemoryError("CUDA out of memory"), "not run", "OutOfMemoryError: CUDA out of"),
    ],
)
def test_what_breaks_a_build_is_the_reason(
    error: Exception, status: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(engine: str) -> Parities:
        if engine == "b":
            raise error
        return judged(**{engine: "passed"})

    steps = gated(tmp_path, monkeypatch, build)
    assert [step.status for step in steps.values()] == ["passed", status, "passed"]
    assert steps["b"].reason.startswith(reason)


def test_a_real_build_that_cannot_be_measured_is_not_run(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is published then, and the verdict comes with the error."""
    monkeypatch.setattr("exporter.parity.verify.parity_packs", one_pack)
    model = Model("tiny", "checkpoint", str(tiny_checkpoint))
    steps: list[Step] = []
    run_gate(Job("gate", model, "cpu", "bfloat16", ("onnx",)), "onnx", tmp_path, steps.append)
    (step,) = steps
    assert step.status == "not run"
    assert "no bfloat16 kernels for CPUs" in step.reason
    with pytest.raises(FileNotFoundError, match="no artifact of tiny in bfloat16 holds 'onnx'"):
        artifact_with("onnx", "tiny", "bfloat16", tmp_path)


# --- Measuring ----------------------------------------------------------------------------------


def test_operators_inside_loops_are_counted(tiny_artifact: Path) -> None:
    nodes = optimised_nodes(tiny_artifact / "model.onnx", "CPUExecutionProvider")
    assert nodes["MemcpyToHost"] == 0
    assert nodes["Loop"] >= 2
    assert nodes["Attention"] + nodes["MatMul"] > 0


def test_an_engine_that_computes_something_else_is_wrong(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(tiny_artifact, "onnx", "cpu") as engine:
        right, wrong = Packed(engine, 64), Packed(engine, 64)
        plain = wrong.rows
        monkeypatch.setattr(wrong, "rows", lambda *given: 1.1 * plain(*given))
        for contender in (right, wrong):
            contender.timing.tokens_s = [1.0]
        compare([right, wrong], [np.array([0, 5, 6, 2])])
    assert right.timing.problem == ""
    assert right.timing.relative_l2 == 0
    assert wrong.timing.problem.startswith("wrong: relative L2 1.0e-01 against onnx, 64 a pack")


def test_flops_of_a_gpu_have_no_exponentials() -> None:
    tiny = Architecture("x", 2, 48, 4, 12, 33, True)
    assert flops(tiny, [10, 20]) - flops(tiny, [10, 20], 0) == 2 * (100 + 400) * 20 * 4


@pytest.mark.parametrize(
    ("timings", "expected"),
    [
        ([Timing("a", "engine", "bfloat16", tokens_s=[1.0])], ("passed", "")),
        (
            [
                Timing("a", "engine", "bfloat16", tokens_s=[1.0]),
                Timing("b", "engine", "bfloat16", problem="EngineError: CUDA out of memory"),
            ],
            ("passed", ""),
        ),
        (
            [
                Timing("a", "engine", "bfloat16", tokens_s=[1.0]),
                Timing("b", "on card", "bfloat16", problem="wrong: relative L2"),
            ],
            ("failed", "b: wrong: relative L2"),
        ),
        (
            [Timing("p", "fair-esm", "float16", problem="x")],
            ("not run", "there was no engine to measure"),
        ),
    ],
)  # fmt: skip
def test_the_status_of_a_benchmark(timings: list[Timing], expected: tuple[str, str]) -> None:
    assert status_of(Benchmark("", 1, 1, 1.0, 1.0, "", timings)) == expected


# --- Reports ------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script> & '"


@pytest.fixture
def made_up() -> Report:
    """Round figures of a card that does not exist."""
    timings = [
        Timing("eager fair-esm", "fair-esm", "float16", 4096, [100.0, 200.0], {4096: 100.0}, 0.0),
        Timing("Hugging Face, SDPA", "hugging face", "float16", problem=HOSTILE),
        Timing("torchscript, 16,384 a pack", "engine", "bfloat16", 16384, [400.0, 800.0], {}, 1e-2),
        Timing("fast, 16,384 a pack", "engine", "bfloat16", 1, [1e9, 1e9], {}, 9.0, "wrong: 9"),
        Timing("on card", "on card", "bfloat16", 16384, [900.0, 900.0], {}, 1e-2),
    ]
    benchmark = Benchmark("mixed", 3, 1000, 1e6, 1e6, "bfloat16", timings)
    parity = Parity(15, 1e-2, 1.25, "torch 2.13", "cuda", "torch flash")
    return Report(
        1, "2026-01-01 00:00 UTC",
        Machine("cuda", "Card of no maker", "9.0", 80.0, "570.1", "16 cores", {"torch": "2.13"}),
        8.0, 7.0,
        [
            Step("gate", "650M", "bfloat16", "torchscript", "passed", parity=parity),
            Step("synchronisation", "650M", "bfloat16", "torchscript", "passed"),
            Step("gate", "650M", "bfloat16", "onnx-cuda", "not run", HOSTILE),
            Step("benchmark", "650M", status="passed", benchmark=benchmark),
        ],
    )  # fmt: skip


def test_aims_are_judged_by_right_engines_with_their_copies(made_up: Report) -> None:
    share, times = aims_of(made_up)
    assert (share.reached, share.verdict) == (0.6, "met")
    assert (times.reached, times.verdict) == (4.0, "met")
    made_up.steps[-1].benchmark.timings[2].tokens_s = [399.0, 799.0]  # type: ignore[union-attr]
    assert aims_of(made_up)[0].verdict == "not met"
    rehearsal = msgspec.structs.replace(
        made_up, machine=msgspec.structs.replace(made_up.machine, device="cpu")
    )
    assert {aim.verdict for aim in aims_of(rehearsal)} == {"not judged: a rehearsal"}


def test_ratios_are_taken_round_by_round(made_up: Report) -> None:
    benchmark = made_up.steps[-1].benchmark
    assert benchmark is not None
    by_label = {row.timing.label: row for row in rows_of(benchmark)}
    assert by_label["torchscript, 16,384 a pack"].of_eager == 4
    assert by_label["torchscript, 16,384 a pack"].of_hugging_face is None
    assert by_label["on card"].of_eager == (9 + 4.5) / 2


def test_passed_is_something_passed_and_nothing_failed(made_up: Report) -> None:
    assert is_passed(made_up)
    made_up.steps[1].status = "failed"
    assert not is_passed(made_up)
    nothing = msgspec.structs.replace(made_up, steps=[made_up.steps[2], made_up.steps[3]])
    assert not is_passed(nothing)


def test_pages_say_what_matters(made_up: Report) -> None:
    page = html.render(made_up)
    assert "PASSED" in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page
    assert "rehearsal" not in page.partition("<body>")[2]
    for text in (page, table(made_up)):
        for words in ("Card of no maker", "570.1", "torch flash", "not run", "met", "wrong: 9"):
            assert words in text


def test_json_is_read_back(made_up: Report, tmp_path: Path) -> None:
    assert results.read(results.write(made_up, tmp_path)) == made_up
