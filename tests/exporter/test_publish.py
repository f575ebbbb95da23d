"""Builds and caches beside other processes, killed ones, and disks that cannot be written."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.formats import native
from exporter.parity.truth.cache import Cache
from exporter.publish import staged, writable_copy
from runtime.user_cache import VARIABLE, default_folder

BUILD = """
import os, sys
from pathlib import Path
from exporter.publish import staged
with staged(Path(sys.argv[1])) as folder:
    (folder / "manifest.json").write_text("half")
    os.kill(os.getpid(), 9)
"""

RENAMES = pytest.mark.parametrize("exchange", [True, False])


def make(folder: Path, content: str) -> None:
    with staged(folder) as aside:
        (aside / "lib").mkdir()
        for name in ("manifest.json", "lib/a.so"):
            (aside / name).write_text(content)


class TestStaged:
    def test_the_next_build_removes_what_killed_ones_left(self, tmp_path: Path) -> None:
        for _ in range(2):
            killed = subprocess.run([sys.executable, "-c", BUILD, str(tmp_path / "a")])
            assert killed.returncode == -signal.SIGKILL
            assert len(list(tmp_path.iterdir())) == 1
        make(tmp_path / "a", "one")
        assert list(tmp_path.iterdir()) == [tmp_path / "a"]

    @RENAMES
    def test_two_of_one_pid(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
    ) -> None:
        """As in two containers: one deleted the other's folder while it was built."""
        monkeypatch.setattr("os.getpid", lambda: 1)
        if not exchange:
            monkeypatch.setattr("exporter.publish._exchange", lambda one, other: False)
        with staged(tmp_path / "a") as one:
            (one / "manifest.json").write_text("one")
            with staged(tmp_path / "a") as other:
                (other / "manifest.json").write_text("other")
            assert (tmp_path / "a" / "manifest.json").read_text() == "other"
        assert (tmp_path / "a" / "manifest.json").read_text() == "one"
        assert list(tmp_path.iterdir()) == [tmp_path / "a"]

    @RENAMES
    def test_many_at_the_same_moment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
    ) -> None:
        if not exchange:
            monkeypatch.setattr("exporter.publish._exchange", lambda one, other: False)
        wrong: list[BaseException] = []
        start = threading.Barrier(4)

        def build(number: int) -> None:
            start.wait()
            try:
                for _ in range(10):
                    make(tmp_path / "a", str(number))
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=build, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert list(tmp_path.iterdir()) == [tmp_path / "a"]
        found = {path.read_text() for path in (tmp_path / "a").rglob("*") if path.is_file()}
        assert len(found) == 1

    def test_files_are_read_only_and_folders_are_not(self, tmp_path: Path) -> None:
        """Weights that are overwritten under a loaded engine change its answers."""
        make(tmp_path / "a", "one")
        modes = {path.name: path.stat().st_mode & 0o222 for path in (tmp_path / "a").rglob("*")}
        assert modes == {
            "manifest.json": 0,
            "a.so": 0,
            "lib": (tmp_path / "a").stat().st_mode & 0o222,
        }
        make(tmp_path / "a", "two")
        copy = writable_copy(tmp_path / "a", tmp_path / "copy")
        assert all(path.stat().st_mode & 0o200 for path in copy.rglob("*"))


class TestCache:
    ANSWER = {"logits": np.arange(6.0).reshape(2, 3)}

    def test_read_only(self, tmp_path: Path, as_nobody: Any) -> None:
        """A hit was a miss: the time of last use could not be set."""
        cache = Cache(tmp_path / "cache")
        cache.write("key", self.ANSWER)
        tmp_path.chmod(0o755)
        code = (
            "import sys; from pathlib import Path; from exporter.parity.truth.cache import Cache\n"
            "cache = Cache(Path(sys.argv[1])); answer = cache.read('key')\n"
            "cache.write('other', answer); print(answer['logits'].sum())"
        )
        result = as_nobody(sys.executable, "-c", code, tmp_path / "cache")
        assert result.stdout.strip() == "15.0", result.stderr
        assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key.npz"]

    def test_the_next_answer_removes_what_a_killed_process_left(self, tmp_path: Path) -> None:
        code = (
            "import os, sys; from pathlib import Path; import numpy\n"
            "from exporter.parity.truth.cache import Cache\n"
            "numpy.savez = lambda path, **_: (path.write_text('half'), os.kill(os.getpid(), 9))\n"
            "Cache(Path(sys.argv[1])).write('key', {})"
        )
        killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
        assert killed.returncode == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 1
        Cache(tmp_path).write("another", self.ANSWER)
        assert [path.name for path in tmp_path.iterdir()] == ["another.npz"]

    def test_without_a_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in (VARIABLE, "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", homeless)
        cache = Cache(default_folder())
        cache.write("key", self.ANSWER)
        assert cache.read("key") is None

    def test_the_native_op_without_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is compiled for this process alone, once."""
        monkeypatch.setenv(VARIABLE, os.devnull)
        monkeypatch.setattr(native, "_compile", self.touch)
        libraries = native.compile_libraries()
        assert (libraries / native.TORCH_LIBRARY).is_file()
        monkeypatch.setattr(native, "_compile", None)
        assert native.compile_libraries() == libraries

    @staticmethod
    def touch(compiler: list[str], source: Path, built: Path) -> None:
        for name in (native.TORCH_LIBRARY, native.ONNXRUNTIME_LIBRARY):
            (built / name).touch()
