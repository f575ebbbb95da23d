import re
from pathlib import Path

import msgspec
import pytest

from benchmarks.machines import FOLDER, add, instruction_sets, page
from benchmarks.results import Run, read


def test_every_machine_is_a_whole_run_and_is_on_the_page() -> None:
    files = sorted(FOLDER.glob("*.json"))
    assert files
    for file in files:
        run = read(file)
        assert run.plan == "machine"
        assert run.machine and run.date and run.python and run.instructions
        for model in run.models:
            assert model.workloads["mixed"].matrix_rate
            about = [model.contenders[name] for name in model.workloads["mixed"].timings]
            assert about and all(contender.versions for contender in about)
        text = file.read_text()
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/", text), "somebody's folders"
    assert (FOLDER / "README.md").read_text() == page(), "make bench-machine writes it"


def test_a_machine_is_added_and_later_replaced(run: Run, tmp_path: Path) -> None:
    run.instructions = "AVX2"
    assert add(run, tmp_path).name == "2-x-some-cpu-avx2.json"
    run.date = "2002-02-03 04:05"
    add(run, tmp_path)
    run.instructions = "AVX2, AVX-512"
    add(run, tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2
    written = (tmp_path / "README.md").read_text()
    assert "2001" not in written
    assert written.count("## 2 x Some CPU") == 2
    assert (
        "| tiny, mixed | eager fair-esm | 750 | 0.10 | 1.00 | 4e-07 | fair-esm 2.0.0 |" in written
    )
    assert "| tiny, mixed | faESM, SDPA | not run | | | | |" in written
    assert "3e-03 **WRONG**" in written


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text('{"plan": "machine"}')
    with pytest.raises(msgspec.ValidationError, match="missing required field"):
        page(tmp_path)


def test_instruction_sets() -> None:
    flags = {"avx", "avx2", "avx512f", "avx512_vnni", "fma"}
    assert instruction_sets(flags) == "AVX2, AVX-512, VNNI"
    assert instruction_sets({"sse2"}) == ""
