import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks.__main__ import wrong_engines
from benchmarks.report.document import write_document
from benchmarks.report.terminal import table
from benchmarks.results import Contender, Run, Setting, Timing, read, write
from benchmarks.summary import headline_of, limit_of, memory_growth, rows_of


def test_ratios_are_taken_round_by_round(run: Run) -> None:
    model = run.models[0]
    headline = headline_of(model, model.workloads["mixed"])
    assert headline is not None
    assert limit_of(model.workloads["mixed"]) == [10_000, 5_000]
    assert (headline.engine, headline.peer) == ("onnx", "openvino_runtime")
    assert headline.of_peer == (6000 / 2000 + 3000 / 1500) / 2
    assert headline.of_eager == 6
    assert headline.of_extract == 7.5
    assert math.isclose(headline.of_limit, 0.6)


def test_wrong_and_other_arithmetic_are_in_the_table_and_not_in_the_headline(run: Run) -> None:
    model = run.models[0]
    verdicts = {row.name: row.verdict for row in rows_of(model, model.workloads["mixed"])}
    assert verdicts["fast"] == "WRONG"
    assert verdicts["onnx-int8"] == verdicts["onnx"] == verdicts["fair_esm"] == "ok"
    assert verdicts["faesm_sdpa"] == "not run: pip install failed: no | wheel"
    assert verdicts.keys() == model.contenders.keys()


def test_one_wrong_answer_of_many_is_wrong(run: Run) -> None:
    model = run.models[0]
    model.workloads["mixed"].timings["onnx"].relative_l2 = [4e-7, 1e-3]
    verdicts = {row.name: row.verdict for row in rows_of(model, model.workloads["mixed"])}
    assert verdicts["onnx"] == "WRONG"
    assert headline_of(model, model.workloads["mixed"]) is None


def test_a_wrong_engine_is_named(run: Run) -> None:
    assert wrong_engines(run) == ["fast (mixed, tiny-artifact)"]


def test_a_wrong_peer_is_no_best_peer(run: Run) -> None:
    model = run.models[0]
    model.workloads["mixed"].timings["openvino_runtime"].relative_l2 = [1e-3, 1e-3]
    headline = headline_of(model, model.workloads["mixed"])
    assert headline is not None
    assert headline.peer == "fair_esm"


def test_a_peer_in_int8_is_no_best_peer(run: Run) -> None:
    model = run.models[0]
    model.contenders["esmcpp_int8"] = Contender("esm.cpp, int8", "peer", 6e-2, in_headline=False)
    model.workloads["mixed"].timings["esmcpp_int8"] = Timing(
        Setting(1, 1024), [9000.0, 9000.0], [2e-2, 2e-2]
    )
    headline = headline_of(model, model.workloads["mixed"])
    assert headline is not None
    assert headline.peer == "openvino_runtime"
    assert "ok" in [r.verdict for r in rows_of(model, model.workloads["mixed"]) if "cpp" in r.name]


def test_memory_growth(run: Run) -> None:
    points = run.models[0].growth.points  # type: ignore[union-attr]
    assert memory_growth(points) == pytest.approx(1.1)
    assert memory_growth(points[:2]) is None


def test_terminal(run: Run) -> None:
    lines = table(run).splitlines()
    (missing,) = [line for line in lines if "faESM" in line]
    assert "not run: pip install failed" in missing
    (wrong,) = [line for line in lines if line.startswith("  fast ")]
    assert wrong.endswith("WRONG")
    assert "3e-03" in wrong
    (headline,) = [line for line in lines if line.startswith("  mixed ")]
    assert headline.split()[:6] == ["mixed", "onnx", "2.50", "6.00", "7.50", "0.60"]
    assert max(map(len, lines)) <= 110


def test_document_and_plots(run: Run, tmp_path: Path) -> None:
    write_document(run, tmp_path)
    page = (tmp_path / "performance.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert "| faESM, SDPA | not run: pip install failed: no \\| wheel | | | | | | |" in rows
    assert any(line.startswith("| fast | 9,000 ") and "**WRONG**" in line for line in rows)
    assert "| mixed | onnx | **2.50** | 6.00 | 7.50 | 0.60 | OpenVINO |" in rows
    assert "is 1.10 x that of 100,000 tokens" in page
    assert "Random weights" in page
    plots = sorted(path.name for path in (tmp_path / "performance").iterdir())
    assert plots == ["tiny-growth.svg", "tiny-scaling.svg", "tiny-throughput.svg"]
    for name in plots:
        assert f"(performance/{name})" in page
        text = "".join(ElementTree.parse(tmp_path / "performance" / name).getroot().itertext())
        assert "tokens" in text or "limit" in text
    again = {path.name: path.read_text() for path in (tmp_path / "performance").iterdir()}
    write_document(run, tmp_path)
    assert again == {p.name: p.read_text() for p in (tmp_path / "performance").iterdir()}


def test_json_is_read_back(run: Run, tmp_path: Path) -> None:
    write(run, tmp_path / "deep" / "run.json")
    assert read(tmp_path / "deep" / "run.json") == run
