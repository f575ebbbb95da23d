import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.staging import staging

HOLD = """
import os, sys
from pathlib import Path
from runtime.staging import staging
with staging(Path(sys.argv[1])) as aside:
    aside.write_text("half")
    print(aside, flush=True)
    sys.stdin.read()
"""


def test_nothing_is_left(tmp_path: Path) -> None:
    with staging(tmp_path / "x.npz") as aside:
        assert aside.name == "x.npz"
        aside.write_text("whole")
        aside.replace(tmp_path / "x.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_two_of_one_process_do_not_meet(tmp_path: Path) -> None:
    with staging(tmp_path / "x") as one, staging(tmp_path / "x") as other:
        assert one != other
        one.write_text("one")
        other.mkdir()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.npz", "[a-z]*.npz", "n" * 250])
def test_live_ones_stay_and_dead_ones_go(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / name)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        written = Path(holder.stdout.readline().strip())
        with staging(tmp_path / name):
            assert written.read_text() == "half"
        os.kill(holder.pid, signal.SIGKILL)
    assert written.exists()
    with staging(tmp_path / name):
        assert not written.exists()
    assert not list(tmp_path.iterdir())


def test_others_folders_stay(tmp_path: Path) -> None:
    (tmp_path / ".x.npz.notes").mkdir()
    (tmp_path / ".y.npz.1.partial").mkdir()
    with staging(tmp_path / "x.npz"):
        pass
    assert len(list(tmp_path.iterdir())) == 2
