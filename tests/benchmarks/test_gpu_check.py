"""``make gpu-check``, rehearsed on the CPU with a tiny model by the code that a card would run."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from benchmarks.contenders import Entrant
from benchmarks.gpu_check import engines, html, results
from benchmarks.gpu_check.attention import KERNELS
from benchmarks.gpu_check.contenders import InThisProcess
from benchmarks.gpu_check.engines import why_not
from benchmarks.gpu_check.gate import artifact_with, run_gate
from benchmarks.gpu_check.packages import NEEDED
from benchmarks.gpu_check.plan import (
    DTYPES,
    NAMES,
    Job,
    Model,
    benchmarks_of,
    gates_of,
    models_of,
    stages_of,
    steps_of,
    with_passed,
)
from benchmarks.gpu_check.results import Machine, Parity, Rates, Report, Step
from benchmarks.gpu_check.schedule import Schedule
from benchmarks.gpu_check.summary import aims_of, is_passed, status_of
from benchmarks.gpu_check.synchronisation import optimised_nodes
from benchmarks.gpu_check.terminal import table
from benchmarks.limit import flops
from benchmarks.measure import Measurement
from benchmarks.plans import on_a_card
from benchmarks.processes import DoesNotFitError, WorkerDiedError
from benchmarks.results import (
    Contender,
    KernelTime,
    ModelResult,
    Setting,
    Timing,
    WorkloadResult,
)
from benchmarks.summary import headline_of, rows_of
from exporter.build_options import BuildOptions
from exporter.model.reference import WeightsSource, load_reference
from exporter.parity.report.schema import ParityError
from exporter.parity.report.schema import Report as Parities
from exporter.parity.rules.verdict import EngineVerdict
from exporter.parity.truth.packs import parity_packs
from runtime.manifest_schema import Architecture
from tests.conftest import default_signals

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
    assert "PASSED: 7 passed, 0 failed, 3 not run" in ended.stdout
    assert re.search(
        r"matrix rate, float32, 1,024 wide: \d.* TFLOP/s cold, \d.* after", ended.stdout
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "gpu-report.html", "gpu-report.json", "logs",
    ]  # fmt: skip


def test_the_matrix_rate_comes_first_cold_and_warm(report: Report) -> None:
    first = report.steps[0]
    assert (first.kind, first.status) == ("matrix rate", "passed")
    assert first.rates is not None
    assert min(first.rates.cold, first.rates.warm) > 1e9
    assert first.rates.burn_s > 0


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
        assert step.parity.packs == len(parity_packs())
        assert step.parity.device == "cpu"
        assert 0 < step.parity.worst_relative_l2 < 2e-6
        assert 0 < step.parity.worst_ratio_to_eager <= 2


def test_what_a_cpu_cannot_show_is_not_run(report: Report) -> None:
    others = [step for step in report.steps if step.kind in ("synchronisation", "graphs")]
    assert {(step.kind, step.engine): step.status for step in others} == {
        ("synchronisation", "torchscript"): "not run", ("graphs", "torchscript"): "not run",
        ("synchronisation", "onnx"): "not run",
    }  # fmt: skip
    assert all(step.reason.endswith(("ran", "read")) for step in others)
    assert report.machine.device == "cpu"
    assert "rehearsal" in report.machine.name


PEERS = {"eager fair-esm, float16", "Hugging Face, SDPA, float16"}


@pytest.mark.parametrize(
    ("label", "engines"),
    [
        ("", {"torchscript, float32", "torchscript, float32, left on the card"}),
        ("other engines", {"onnx, float32"}),
    ],
)
def test_everybody_is_measured_on_the_same_tokens(
    report: Report, label: str, engines: set[str]
) -> None:
    (step,) = [s for s in report.steps if (s.kind, s.engine) == ("benchmark", label)]
    found = step.benchmark
    assert found is not None
    workload = found.workloads["mixed"]
    rows = {row.label: row for row in rows_of(found, workload)}
    assert rows.keys() == PEERS | engines
    for row in rows.values():
        assert row.verdict == "ok"
        assert (row.tokens_s or 0) > 0
        assert row.max_tokens in (64, 128)
        timing = workload.timings[row.name]
        assert len(timing.tokens_s) == len(workload.matrix_rate) >= 1
        assert timing.relative_l2 > [1e-9 if "fair-esm" not in row.label else 0]
    assert workload.tokens >= 256
    assert min(workload.matrix_rate) > 1e8
    assert found.matrix_product.startswith("float32")
    # Engines in float32 do not compare with peers in float16.
    assert headline_of(found, workload) is None
    assert found.latency is not None
    assert found.latency.runs_ms.keys() == found.contenders.keys()


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
    assert by_kind["benchmark"].reason == "no engine that had passed the gate was left to measure"
    assert (
        "broken.pt is not a PyTorch checkpoint" in (tmp_path / "out" / html.FILE_NAME).read_text()
    )


def test_without_time_every_step_is_listed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ended = run_tiny(tiny_checkpoint, tmp_path, "--minutes", 0)
    assert ended.returncode == 1
    report = results.read(tmp_path / results.FILE_NAME)
    assert len(report.steps) == 10
    assert {(step.status, step.reason) for step in report.steps} == {
        ("not run", "no time was left")
    }


def workers_in(folder: Path) -> list[str]:
    """Processes whose working folder is in ``folder``, or was when it was removed."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            found += [link.parent.name] if str(link.readlink()).startswith(str(folder)) else []
    return found


def commands_of(process: str) -> bytes:
    with suppress(OSError):
        return Path("/proc", process, "cmdline").read_bytes()
    return b""


def wait_until(happened: Callable[[], object], seconds: float = 60) -> None:
    until = time.perf_counter() + seconds
    while not happened():
        assert time.perf_counter() < until
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("number", "last_words"),
    [
        # Ctrl-C goes the same way up as SIGTERM.
        (signal.SIGTERM, r"stopped after \d+ s: the check was ended"),
        (signal.SIGKILL, "the check ended before it"),
    ],
)
def test_a_check_that_is_ended_leaves_a_report_and_no_process(
    tiny_checkpoint: Path, tmp_path: Path, number: signal.Signals, last_words: str
) -> None:
    arguments = ["--device", "cpu", "--models", tiny_checkpoint, "--dtypes", "float32"]
    command = [sys.executable, "-m", "benchmarks.gpu_check", *arguments, "--out", tmp_path]
    path = tmp_path / results.FILE_NAME
    with (
        default_signals(),
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process,
    ):
        try:
            wait_until(
                lambda: any(b'"gate"' in commands_of(worker) for worker in workers_in(tmp_path))
            )
            time.sleep(0.5)  # until the check knows that it has started it
            process.send_signal(number)
            printed, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    report = results.read(path)
    assert any(step.status == "passed" for step in report.steps)
    left = {step.reason for step in report.steps if step.status != "passed"}
    assert any(re.fullmatch(last_words, reason) for reason in left), left
    assert all(reason in (tmp_path / html.FILE_NAME).read_text() for reason in left)
    assert (str(path) in printed) == (number != signal.SIGKILL)
    wait_until(lambda: not workers_in(tmp_path), 3)


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


@pytest.fixture
def _all_engines_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu_check.plan.why_not", lambda *_: "")


@pytest.mark.usefixtures("_all_engines_can_run")
def test_the_order_in_which_gates_matter() -> None:
    jobs = gates_of(models_of(NAMES), ["float32", "bfloat16", "float16"], "cuda")
    assert all(len(job.engines) == 1 for job in jobs)
    order = list(dict.fromkeys((job.model.name, job.dtype) for job in jobs))
    assert order[:6] == [(name, dtype) for name in ("8M", "650M") for dtype in DTYPES]
    assert [name for name, _ in order[6::3]] == ["35M", "150M", "3B"]


@pytest.mark.usefixtures("_all_engines_can_run")
def test_the_order_of_a_check_on_a_card() -> None:
    """What shows the most comes first; what times kernels while it builds comes last, alone."""
    stages = stages_of(models_of(["8M", "150M", "650M"]), DTYPES, (4096, 16_384, 65_536), "cuda")
    card, first, headline, others, benchmarks, tuned, of_tuned = (stage.jobs for stage in stages)
    assert [job.kind for job in card] == ["matrix rate"]
    kernels, gates = first[: len(KERNELS["cuda"])], first[len(KERNELS["cuda"]) :]
    assert [job.engines for job in kernels] == [(name,) for name in KERNELS["cuda"]]
    assert all(job.dtypes == DTYPES for job in kernels)
    assert [(job.model.name, job.dtype, *job.engines) for job in gates] == [
        (model, "bfloat16", engine)
        for model in ("8M", "650M") for engine in ("torchscript", "aoti-cuda")
    ]  # fmt: skip
    (job,) = headline
    assert (job.model.name, job.engines) == ("650M", ("torchscript", "aoti-cuda"))
    assert set(job.pack_tokens) >= {16_384, 65_536}
    halves = [("8M", half, "onnx-cuda") for half in ("bfloat16", "float16")]
    halves += [("650M", half, "onnx-cuda") for half in ("bfloat16", "float16")]
    assert [(job.model.name, job.dtype, *job.engines) for job in others[:4]] == halves
    cpp, *rest = others[4:]
    assert (cpp.kind, cpp.model.name, cpp.dtype) == ("c++", "8M", "bfloat16")
    assert cpp.engines == ("torchscript", "aoti-cuda")
    assert {job.kind for job in rest} == {"gate"}
    assert [(job.model.name, job.label) for job in benchmarks] == [
        ("650M", "other engines"), ("8M", ""), ("150M", ""),
    ]  # fmt: skip
    assert {job.engines for job in (*tuned, *of_tuned)} == {("tensorrt",)}
    assert not any(
        "tensorrt" in job.engines for jobs in (first, others, benchmarks) for job in jobs
    )
    # One process at a time where the card is timed, and no end before the one before.
    assert [stage.is_alone for stage in stages] == [True, False, True, False, True, True, True]
    ends = [stage.until for stage in stages if not stage.at_most < 1]
    assert ends == sorted(ends) and ends[-1] == 1.0
    names = [job.name for stage in stages for job in stage.jobs]
    assert len(set(names)) == len(names)


@pytest.mark.usefixtures("_all_engines_can_run")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_steps_are_those_of_the_jobs(device: str) -> None:
    models = models_of(["8M", "650M"])
    keys = [step.key for step in steps_of(models, DTYPES, device)]
    stages = stages_of(models, DTYPES, (16,), device)
    assert len(set(keys)) == len(keys)
    assert sorted(keys) == sorted(
        step.key for stage in stages for job in stage.jobs for step in job.steps()
    )


def test_what_cannot_run_is_planned_with_its_reason() -> None:
    steps = steps_of(models_of(["8M"]), DTYPES, "cpu")
    (impossible,) = [
        step for step in steps if (step.kind, step.dtype) == ("gate", "bfloat16")
        and step.engine == "onnx"
    ]  # fmt: skip
    assert impossible.reason == "onnxruntime has no kernels for CPUs in bfloat16"


def test_each_engine_is_measured_once_in_the_first_dtype_that_it_passed_in() -> None:
    (headline,), (others,), _ = benchmarks_of(models_of(["8M"]), [16], "cpu")
    passed = [("torchscript", "float32"), ("torchscript", "bfloat16"), ("onnx", "float16")]
    steps = [Step("gate", "8M", dtype, engine, "passed") for engine, dtype in passed]
    steps += [Step("gate", "35M", "float32", "onnx", "passed")]
    assert with_passed(headline, steps[2:]).engines == ()
    assert with_passed(headline, steps).engines == ("torchscript:bfloat16",)
    assert with_passed(others, steps).engines == ("torchscript:bfloat16", "onnx:float16")
    timings = {"torchscript": measured([])}
    benchmark = ModelResult(
        "8M", "8M", True, contenders={"torchscript": engine("torchscript")},
        workloads={"mixed": WorkloadResult("", 1, 1, 1.0, [], timings)},
    )  # fmt: skip
    steps.append(Step("benchmark", "8M", benchmark=benchmark))
    assert with_passed(others, steps).engines == ("torchscript:bfloat16", "onnx:float16")
    timings["torchscript"].tokens_s.append(1.0)
    assert with_passed(others, steps).engines == ("onnx:float16",)


@pytest.fixture
def _compiler_is_asked_anew() -> Iterator[None]:
    engines._missing_for_cuda.cache_clear()
    yield
    engines._missing_for_cuda.cache_clear()


@pytest.mark.usefixtures("_compiler_is_asked_anew")
def test_why_an_engine_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not("torchscript", "bfloat16", "cuda") == ""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "no CUDAExecutionProvider" in why_not("onnx-cuda", "float16", "cuda")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert why_not("onnx-cuda", "float16", "cuda") == ""
    assert "packed attention in bfloat16" in why_not("onnx-cuda", "bfloat16", "cuda")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "triton" in why_not("aoti-cuda", "float32", "cuda")


@pytest.mark.usefixtures("_compiler_is_asked_anew")
def test_without_the_toolkit_what_it_compiles_is_not_run_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    monkeypatch.setattr("benchmarks.gpu_check.engines.capability_of_this_gpu", lambda: "9.0")
    models = models_of(["8M"])
    found = [step for step in steps_of(models, ["float16"], "cuda") if step.engine == "aoti-cuda"]
    jobs = gates_of(models, ["float16"], "cuda")
    assert [step.kind for step in found] == ["gate", "synchronisation", "graphs"]
    for step in found:
        assert step.status == "not run"
        assert "Install the CUDA toolkit of PyTorch's version and set CUDA_HOME" in step.reason
    assert not any("aoti-cuda" in job.engines for job in jobs)


def test_a_model_that_is_none() -> None:
    with pytest.raises(ValueError, match="or a checkpoint's path, got '9B'"):
        models_of(["8M", "9B"])


# --- Processes ----------------------------------------------------------------------------------


def scheduled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: str, seconds: float,
    models: tuple[str, ...] = ("a", "b"), engines: tuple[str, ...] = ("onnx",),
    note: Callable[[list[Step]], None] = lambda steps: None, jobs: Sequence[Job] = (),
    at_once: int = 2,
) -> list[Step]:  # fmt: skip
    """Runs the models' gates, or ``jobs``, with ``worker`` as the code of each process."""
    (tmp_path / "benchmarks" / "gpu_check").mkdir(parents=True)
    for name in ("__init__", "gpu_check/__init__"):
        (tmp_path / "benchmarks" / f"{name}.py").touch()
    (tmp_path / "benchmarks" / "gpu_check" / "worker.py").write_text(worker)
    monkeypatch.setattr("benchmarks.gpu_check.schedule.ROOT", tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    gated = [Model(name, "checkpoint", "x") for name in models]
    jobs = jobs or [
        Job("gate", model, "cpu", "float32", (engine,)) for model in gated for engine in engines
    ]
    found: list[Step] = []

    def done(steps: list[Step]) -> None:
        found.extend(steps)
        note(steps)

    Schedule(work, tmp_path, done).run(jobs, at_once, time.perf_counter() + seconds)
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
        return type("Running", (), {"job": job, "process": Process(), "age_s": 0.0})()

    def end(one: object, why: str) -> None:
        running.remove(one.job.model.name)  # type: ignore[attr-defined]

    monkeypatch.setattr(schedule, "_start", start)
    monkeypatch.setattr(schedule, "_collect", lambda one: None)
    monkeypatch.setattr(schedule, "_end", end)
    models = [Model(name, "checkpoint", "x") for name in ("a", "b")]
    jobs = [Job("gate", model, "cpu", dtype, ("onnx",)) for model in models for dtype in DTYPES]
    schedule.run(jobs, 4, time.perf_counter() + 60)
    assert ("a", "b") in seen
    assert all(len(set(names)) == len(names) for names in seen)


ONE_IS_ILL = """
import json, os, signal, sys, time
job, results = json.loads(sys.argv[1]), sys.argv[2]
(engine,) = job["engines"]
if engine == "torchscript":
    {illness}
for kind in ("gate", "synchronisation"):
    step = dict(kind=kind, model="a", dtype="float32", engine=engine, status="passed")
    open(results, "a").write(json.dumps(step) + "\\n")
"""


@pytest.mark.parametrize(
    ("illness", "seconds", "end"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 60, "failed: its process was ended by SIGKILL"),
        (
            "time.sleep(100)", 6,
            "not run: stopped after N s: it had half of the time, and others waited for its place",
        ),
    ],
)  # fmt: skip
def test_who_crashes_or_hangs_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, illness: str, seconds: float, end: str
) -> None:
    engines = ("torchscript", "aoti-cuda", "onnx-cuda")
    worker = ONE_IS_ILL.format(illness=illness)
    steps = scheduled(tmp_path, monkeypatch, worker, seconds, ("a",), engines, at_once=1)
    reasons = [re.sub(r"after \d+ s", "after N s", step.reason) for step in steps]
    found = {
        (step.kind, step.engine): f"{step.status}: {reason}"
        for step, reason in zip(steps, reasons, strict=True)
    }
    assert found.pop(("graphs", "torchscript")) == end
    found.pop(("graphs", "aoti-cuda"))  # of which this worker knows nothing
    assert found == {
        (kind, engine): end if engine == "torchscript" else "passed: "
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


BENCHMARK_THAT_ENDS = """
import json, os, signal, sys, time
results = sys.argv[2]
for status in ("not run", "passed"):
    step = dict(kind="benchmark", model="a", status=status, reason="")
    open(results, "a").write(json.dumps(step) + "\\n")
"""


@pytest.mark.parametrize(
    ("end", "seconds", "status", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", 60, "failed", "its process was ended by SIGSEGV"),
        ("raise KeyError('no kernel')", 60, "failed", "KeyError: 'no kernel'"),
        ("time.sleep(100)", 3, "passed", "no time was left"),
        ("pass", 60, "passed", ""),
    ],
)
def test_how_a_benchmark_ended_is_said_after_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, seconds: float, status: str,
    reason: str,
) -> None:  # fmt: skip
    """It has reported its step long before: a crash must not leave that as the last word."""
    job = Job("benchmark", Model("a", "checkpoint", "x"), "cpu", engines=("onnx:float32",))
    steps = scheduled(tmp_path, monkeypatch, BENCHMARK_THAT_ENDS + end, seconds, jobs=[job])
    assert steps[-1].status == status
    assert steps[-1].reason.endswith(reason)


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
    job = Job("gate", Model("m", "checkpoint", "x"), "cpu", "float32", ("a", "b", "c"))
    steps: list[Step] = []
    for engine in job.engines:
        run_gate(job, engine, tmp_path, steps.append)
    return {step.engine: step for step in steps}


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
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Nothing is published then, and the verdict comes with the error."""
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


class Faulty:
    """A contender whose second batch does not fit, or breaks."""

    concurrency = 1

    def __init__(self, error: Exception):
        self._error = error

    def prepare(self, proteins: Sequence[np.ndarray]) -> Callable[[], None]:
        def run() -> None:
            if len(proteins) > 1:
                raise self._error

        return run

    def finish(self) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), DoesNotFitError),
        (RuntimeError("x\nFailed to allocate memory for requested buffer"), DoesNotFitError),
        (RuntimeError("CUDA: cudaErrorMemoryAllocation"), DoesNotFitError),
        (KeyError("no kernel\nfor this"), WorkerDiedError),
    ],
)
def test_what_a_contender_raises_is_told_as_if_its_process_died(
    error: Exception, raised: type[Exception]
) -> None:
    with InThisProcess(lambda: Faulty(error)) as worker:
        assert worker.ask("time", batches=[[3], [4]], warm=True)["seconds"] >= 0
        with pytest.raises(WorkerDiedError) as found:
            worker.ask("time", batches=[[3, 4]])
    assert type(found.value) is raised
    assert f"{type(error).__name__}: " in str(found.value)
    assert str(found.value).startswith("out of memory: ") == (raised is DoesNotFitError)


def test_a_batch_that_does_not_fit_ends_the_search_alone(tiny_checkpoint: Path) -> None:
    """The size below it is taken."""
    error = torch.OutOfMemoryError("CUDA out of memory")
    faulty = InThisProcess(lambda: Faulty(error))
    about = Contender("faulty", "engine", 1.0)
    # One protein a batch fits, all in one does not.
    entrant = Entrant(
        "faulty", about, lambda *_: faulty, (1,),
        lambda lengths, tokens: [[n] for n in lengths] if tokens == 64 else [lengths], "faulty",
    )  # fmt: skip
    reference = load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))
    result = ModelResult("tiny", "tiny", True)
    plan = on_a_card((64, 2048), search_s=60, most_rounds=7)
    measurement = Measurement(
        result, plan, [entrant], Answerless(), reference.architecture, cores=1,
        say=lambda line: None,
    )  # fmt: skip
    with measurement.workers():
        measurement.search()
    assert about.not_run == ""
    assert result.workloads["mixed"].timings["faulty"].setting == Setting(1, 64)


class Answerless:
    """No truth is asked for."""

    def error_of(self, worker: object) -> float:
        return 0.0


def test_flops_of_a_gpu_have_no_exponentials() -> None:
    tiny = Architecture("x", 2, 48, 4, 12, 33, True)
    assert flops(tiny, [10, 20]) - flops(tiny, [10, 20], 0) == 2 * (100 + 400) * 20 * 4


def measured(rates: list[float], error: float = 1e-2) -> Timing:
    return Timing(Setting(1, 16_384), rates, [error] * len(rates))


def engine(label: str, not_run: str = "") -> Contender:
    return Contender(label, "engine", 5e-2, not_run=not_run)


@pytest.mark.parametrize(
    ("contenders", "timings", "expected"),
    [
        ([engine("a")], [measured([1.0])], ("passed", "")),
        (
            [engine("a"), engine("b", "out of memory: EngineError: x")],
            [measured([1.0]), measured([])],
            ("passed", ""),
        ),
        (
            [engine("a"), engine("b")],
            [measured([1.0]), measured([1.0], 9.0)],
            ("failed", "b: wrong: relative L2 9.0e+00"),
        ),
        (
            [engine("a"), engine("b", "KeyError: x")],
            [measured([1.0]), measured([])],
            ("failed", "b: KeyError: x"),
        ),
        ([Contender("p", "peer", 1.0)], [measured([])], ("not run", "there was no engine")),
    ],
)
def test_the_status_of_a_benchmark(
    contenders: list[Contender], timings: list[Timing], expected: tuple[str, str]
) -> None:
    names = [about.label for about in contenders]
    workload = WorkloadResult("", 1, 1, 1.0, [1.0], dict(zip(names, timings, strict=True)))
    found = ModelResult(
        "m", "m", True, contenders=dict(zip(names, contenders, strict=True)),
        workloads={"mixed": workload},
    )  # fmt: skip
    status, reason = status_of(found)
    assert (status, reason[: len(expected[1])]) == expected


# --- Reports ------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script> & '"


@pytest.fixture
def made_up() -> Report:
    """Round figures of a card that does not exist."""
    entered = {
        "fair_esm": (Contender("eager fair-esm", "peer", 5e-2), measured([100.0, 200.0])),
        "huggingface_sdpa": (
            Contender("Hugging Face, SDPA", "peer", 5e-2, not_run=HOSTILE), measured([]),
        ),
        "torchscript": (
            Contender("torchscript, bfloat16", "engine", 5e-2), measured([400.0, 800.0]),
        ),
        "fast": (Contender("fast", "engine", 5e-2), measured([1e9, 1e9], 9.0)),
        "card": (
            Contender(
                "left on the card", "engine", 5e-2, in_headline=False,
                kernels=[KernelTime("gemm", 3, 0.5)],
            ),
            measured([900.0, 900.0]),
        ),
    }  # fmt: skip
    benchmark = ModelResult(
        "650M", "esm2_t33_650M_UR50D", True, "bfloat16",
        contenders={name: about for name, (about, _) in entered.items()},
        workloads={
            "mixed": WorkloadResult(
                "mixed", 3, 1000, 1e6, [1e6, 1e6],
                {name: timing for name, (_, timing) in entered.items()},
            )
        },
    )  # fmt: skip
    parity = Parity(15, 1e-2, 1.25, "torch 2.13", "cuda", "torch flash")
    rates = Rates("bfloat16, 8,192 wide", 7e14, 6e14, 3.0)
    return Report(
        2, "2026-01-01 00:00 UTC",
        Machine("cuda", "Card of no maker", "9.0", 80.0, "570.1", "16 cores", {"torch": "2.13"}),
        8.0, 7.0,
        [
            Step("matrix rate", "card", status="passed", rates=rates),
            Step("gate", "650M", "bfloat16", "torchscript", "passed", parity=parity),
            Step("synchronisation", "650M", "bfloat16", "torchscript", "passed"),
            Step("gate", "650M", "bfloat16", "onnx-cuda", "not run", HOSTILE),
            Step("benchmark", "650M", status="passed", benchmark=benchmark),
        ],
    )  # fmt: skip


def test_aims_are_judged_by_right_engines_with_their_copies(made_up: Report) -> None:
    share, times = aims_of(made_up)
    assert (share.reached, share.verdict) == (pytest.approx(0.6), "met")
    assert (times.reached, times.verdict) == (4.0, "met")
    workload = made_up.steps[-1].benchmark.workloads["mixed"]  # type: ignore[union-attr]
    workload.timings["torchscript"].tokens_s = [399.0, 799.0]
    assert aims_of(made_up)[0].verdict == "not met"
    rehearsal = msgspec.structs.replace(
        made_up, machine=msgspec.structs.replace(made_up.machine, device="cpu")
    )
    assert {aim.verdict for aim in aims_of(rehearsal)} == {"not judged: a rehearsal"}


def test_passed_is_something_passed_and_nothing_failed(made_up: Report) -> None:
    assert is_passed(made_up)
    made_up.steps[2].status = "failed"
    assert not is_passed(made_up)
    nothing = msgspec.structs.replace(made_up, steps=made_up.steps[3:])
    assert not is_passed(nothing)


def test_pages_say_what_matters(made_up: Report) -> None:
    page = html.render(made_up)
    assert "PASSED" in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page
    assert "rehearsal" not in page.partition("<body>")[2]
    assert "gemm" in page
    for text in (page, table(made_up)):
        for words in ("Card of no maker", "570.1", "torch flash", "not run", "met", "WRONG",
                      "bfloat16, 8,192 wide: 700.00 TFLOP/s ", "600.00 after 3 s of"):  # fmt: skip
            assert words in text


def test_json_is_read_back(made_up: Report, tmp_path: Path) -> None:
    assert results.read(results.write(made_up, tmp_path)) == made_up
