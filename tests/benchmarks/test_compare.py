import copy
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from benchmarks.compare import main
from benchmarks.results import Run, write


def compared(tmp_path: Path, old: Run, new: Run, *options: str) -> Result:
    write(old, tmp_path / "old.json")
    write(new, tmp_path / "new.json")
    files = [str(tmp_path / "old.json"), str(tmp_path / "new.json")]
    return CliRunner().invoke(main, [*files, *options])


def scale(run: Run, factor: float, *names: str) -> None:
    workload = run.models[0].workloads["mixed"]
    for name in names or workload.timings:
        timing = workload.timings[name]
        timing.tokens_s = [factor * rate for rate in timing.tokens_s]


def test_a_machine_half_as_fast_changes_nothing(run: Run, tmp_path: Path) -> None:
    new = copy.deepcopy(run)
    scale(new, 0.5)
    new.models[0].workloads["mixed"].matrix_rate = [1e10, 5e9]
    result = compared(tmp_path, run, new)
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.output.splitlines() if ": onnx " in line]
    assert row.split()[-3:] == ["0.60", "0.60", "+0%"]
    assert "fast" not in result.output, "wrong in OLD: there is nothing to keep"


def test_an_engine_that_became_slower_fails(run: Run, tmp_path: Path) -> None:
    new = copy.deepcopy(run)
    scale(new, 0.85, "onnx")
    result = compared(tmp_path, run, new)
    assert result.exit_code == 1
    assert [line for line in result.output.splitlines() if "SLOWER" in line] == [
        f"{'tiny, mixed: onnx':56}    0.60    0.51     -15%  SLOWER"
    ]
    assert compared(tmp_path, run, new, "--tolerance", "0.2").exit_code == 0
    assert compared(tmp_path, new, run).exit_code == 0, "faster is no failure"


def test_another_base(run: Run, tmp_path: Path) -> None:
    new = copy.deepcopy(run)
    scale(new, 1.5, "fair_esm")
    result = compared(tmp_path, run, new, "--base", "fair_esm")
    assert result.exit_code == 1
    assert "eager fair-esm" not in result.output, "a base is not compared with itself"
    assert compared(tmp_path, run, new).exit_code == 0


@pytest.mark.parametrize("end", ["wrong", "dead", "absent"])
def test_what_no_longer_gives_an_answer_fails(run: Run, tmp_path: Path, end: str) -> None:
    new = copy.deepcopy(run)
    model = new.models[0]
    if end == "wrong":
        model.workloads["mixed"].timings["onnx"].relative_l2 = [4e-7, 1e-3]
    elif end == "dead":
        model.contenders["onnx"].not_run = "out of ideas"
    else:
        del model.contenders["onnx"], model.workloads["mixed"].timings["onnx"]
    result = compared(tmp_path, run, new)
    assert result.exit_code == 1
    said = {"wrong": "WRONG", "dead": "not run: out of ideas", "absent": "not in NEW"}[end]
    assert f"0.60  {said}  SLOWER" in result.output


def test_a_peer_that_was_left_out_is_no_failure(run: Run, tmp_path: Path) -> None:
    new = copy.deepcopy(run)
    del new.models[0].contenders["openvino_runtime"]
    del new.models[0].workloads["mixed"].timings["openvino_runtime"]
    assert compared(tmp_path, run, new).exit_code == 0


def test_what_cannot_be_compared_is_an_error_of_its_own(run: Run, tmp_path: Path) -> None:
    other = copy.deepcopy(run)
    other.plan = "bench"
    result = compared(tmp_path, run, other)
    assert (result.exit_code, "OLD is of plan 'full'" in result.output) == (2, True)
    result = compared(tmp_path, run, run, "--base", "faesm_sdpa")
    assert (result.exit_code, "take another" in result.output) == (2, True)
    other = copy.deepcopy(run)
    other.models[0].architecture = "another"
    result = compared(tmp_path, run, other)
    assert (result.exit_code, "nothing to compare" in result.output) == (2, True)
    (tmp_path / "broken.json").write_text("{")
    result = CliRunner().invoke(main, [str(tmp_path / "broken.json")] * 2)
    assert (result.exit_code, "cannot compare" in result.output) == (2, True)
