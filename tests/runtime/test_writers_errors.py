"""Writers on full disks, out of memory, interrupted anywhere, killed, and two at a time."""

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import runtime.writers
from runtime import Embedding, EngineError, InputError, OutOfMemoryError, OutputError
from runtime.staging import staging
from runtime.writers import check_output, write_embeddings
from tests.conftest import default_signals
from tests.runtime.outputs import ENDINGS, assert_same, embeddings, read

pytestmark = pytest.mark.slow

CODE = (Path(runtime.writers.__file__).parent, Path(runtime.staging.__file__))


@pytest.fixture(params=ENDINGS)
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"x{request.param}"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.writers.blocks.BLOCK_BYTES", 4096)


# Writes argv[2] proteins of 10 residues to argv[1]; argv[3] is run when half of them are given.
WRITE = """
import resource, signal, sys, time
from pathlib import Path
import numpy as np
from runtime import Embedding, Esm2Error
from runtime.writers import write_embeddings

noise = np.random.default_rng(0).random((10, 320), "float32") / 2

leak, held = 0, []

def embeddings(proteins):
    for number in range(proteins):
        if number == proteins // 2:
            exec(sys.argv[3], globals())
        held.append(bytearray(leak))
        yield Embedding(f"p{number}", 12, noise + number)

try:
    write_embeddings(Path(sys.argv[1]), embeddings(int(sys.argv[2])), {"engine": "onnx"})
except Esm2Error as error:
    sys.exit(f"error: {error}")
"""


def write_in_a_process(
    path: Path, proteins: int, halfway: str = "pass", before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WRITE, str(path), str(proteins), halfway]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=before)


class TestFullDisk:
    """Real ones: ended HDF5's process with a segmentation fault."""

    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        """Of 2 MB."""
        if os.geteuid() != 0:
            pytest.skip("only root can mount a small file system")
        command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
        mounted = subprocess.run(command, capture_output=True, text=True)
        if mounted.returncode:
            pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
        yield tmp_path
        subprocess.run(["umount", str(tmp_path)], check=True)

    @pytest.mark.parametrize("proteins", [190, 6000])
    def test_is_one_line_and_leaves_the_old_output(
        self, disk: Path, output: Path, proteins: int
    ) -> None:
        """Full while rows are written, and full only when the file is closed."""
        output.write_bytes(b"precious")
        result = write_in_a_process(output, proteins)
        assert result.returncode == 1
        assert result.stderr.startswith(f"error: cannot write {output}: No space left on device")
        assert len(result.stderr.splitlines()) == 1
        assert list(disk.iterdir()) == [output]
        assert output.read_bytes() == b"precious"

    @pytest.mark.parametrize("num_bytes", [0, 100, 3000, 100_000, 2_000_000])
    def test_wherever_a_file_may_grow_no_further(self, output: Path, num_bytes: int) -> None:
        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))

        result = write_in_a_process(output, 6000, before=limit)
        assert result.returncode == 1
        assert result.stderr.startswith(f"error: cannot write {output}: File too large")
        assert len(result.stderr.splitlines()) == 1
        assert not list(output.parent.iterdir())


class TestMemory:
    @pytest.mark.usefixtures("small_blocks")
    @pytest.mark.parametrize("finished", [0, 1, 50, 77])
    def test_what_was_finished_is_kept(self, output: Path, finished: int) -> None:
        expected = list(embeddings(finished, residues=5))

        def stream() -> Iterator[Embedding]:
            yield from expected
            raise MemoryError

        output.write_bytes(b"precious")
        with pytest.raises(OutOfMemoryError) as caught:
            write_embeddings(output, stream(), {"engine": "onnx"})
        unfinished = output.with_name(f"x.unfinished{output.suffix}")
        if finished:
            assert f"The {finished} proteins finished before are in {unfinished}" in str(
                caught.value
            )
            assert_same(read(unfinished), expected)
        else:
            assert "No protein was finished before" in str(caught.value)
        assert "--max-tokens" in str(caught.value)
        assert output.read_bytes() == b"precious"
        assert len(list(output.parent.iterdir())) == 1 + bool(finished)

    def test_of_a_real_process(self, output: Path) -> None:
        """When half of the proteins are there, the engine takes more memory than there is."""
        limit = (
            "import re; used = int(re.search(r'VmSize:\\\\s+(\\\\d+)', "
            "Path('/proc/self/status').read_text())[1]) << 10; "
            "resource.setrlimit(resource.RLIMIT_AS, (used + (20 << 20),) * 2); leak = 4 << 20"
        ).replace("\\\\", "\\")
        result = write_in_a_process(output, 6000, limit)
        assert result.returncode == 1
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert result.stderr.startswith(f"error: out of memory while embedding into {output}. The ")
        (unfinished,) = output.parent.iterdir()
        kept = read(unfinished)
        assert f"The {len(kept)} proteins finished before are in {unfinished}" in result.stderr
        assert len(kept) >= 3_000 - 82
        assert [int(e.values.min()) for e in kept] == list(range(len(kept)))

    @pytest.mark.usefixtures("small_blocks")
    def test_an_engine_that_fails(self, output: Path) -> None:
        def stream() -> Iterator[Embedding]:
            yield from embeddings(30)
            raise EngineError("engine 'onnx' failed")

        with pytest.raises(EngineError, match="engine 'onnx' failed. The 30 proteins"):
            write_embeddings(output, stream(), {})
        assert len(read(output.with_name(f"x.unfinished{output.suffix}"))) == 30

    @pytest.mark.usefixtures("small_blocks")
    def test_nothing_of_an_input_that_is_wrong(self, output: Path) -> None:
        def stream() -> Iterator[Embedding]:
            yield from embeddings(30)
            raise InputError("record 31")

        with pytest.raises(InputError, match=r"^record 31$"):
            write_embeddings(output, stream(), {})
        assert not list(output.parent.iterdir())


class Interrupter:
    """Raises in the n-th line that is run in the writers, as a signal's handler would."""

    def __init__(self, line: int):
        self.left = line

    def __call__(self, frame: FrameType, event: str, _: Any) -> "Interrupter | None":
        path = Path(frame.f_code.co_filename)
        if path not in CODE and path.parent not in CODE:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise SystemExit(143)
        return self


# Interrupted between opening and remembering, a file is closed by the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("small_blocks")
def test_interrupted_in_any_line(output: Path) -> None:
    write_embeddings(output, embeddings(2), {})
    output.unlink()
    line = 0
    finished = False
    while not finished:
        line += 1
        tracing = sys.gettrace()
        try:
            sys.settrace(Interrupter(line))
            write_embeddings(output, embeddings(16, residues=3), {"engine": "onnx"})
            finished = True
        except SystemExit:
            pass
        finally:
            sys.settrace(tracing)
        # Whole after the last step, or nothing.
        left = [path.name for path in output.parent.iterdir()]
        assert left in ([], [output.name]), f"line {line}"
        if left:
            assert len(read(output)) == 16
            output.unlink()
    gc.collect()
    assert line > 100


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(output: Path, number: signal.Signals) -> None:
    """With a handler that raises, as the command line's does."""
    halfway = (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); "
        "print('half', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", WRITE, str(output), "6000", halfway]
    with default_signals():
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with started as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode in (143, -signal.SIGINT)
    assert not list(output.parent.iterdir())


def test_the_next_run_removes_what_a_killed_one_left(output: Path) -> None:
    """Killed before anything was written, with a block in the file, with several."""
    for proteins in (2, 6000, 12_000):
        result = write_in_a_process(output, proteins, "import os; os.kill(os.getpid(), 9)")
        assert result.returncode == -signal.SIGKILL
        assert len(list(output.parent.iterdir())) == 1
    write_embeddings(output, embeddings(3), {})
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.usefixtures("small_blocks")
def test_two_of_one_pid_that_write_one_file(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in two containers that share a folder: the file was damaged and the status 0."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    for _ in range(20):
        start = threading.Barrier(2)
        wrong: list[BaseException] = []

        def write(number: int, start: threading.Barrier, wrong: list[BaseException]) -> None:
            def stream() -> Iterator[Embedding]:
                for embedding in embeddings(60 + number, residues=3):
                    time.sleep(1e-4)
                    yield embedding

            try:
                start.wait()
                write_embeddings(output, stream(), {})
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=write, args=(n, start, wrong)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        found = read(output)
        assert_same(found, list(embeddings(len(found), residues=3)))
        assert len(found) in (60, 61)
        assert list(output.parent.iterdir()) == [output]


class TestCheckOutput:
    """Every format: found before any work."""

    def test_leaves_nothing(self, output: Path) -> None:
        check_output(output)
        assert not list(output.parent.iterdir())

    def test_a_name_that_is_too_long(self, output: Path) -> None:
        path = output.with_name(f"{'n' * 260}{output.suffix}")
        with pytest.raises(OutputError, match=f"cannot write {path}: File name too long"):
            check_output(path)

    def test_a_name_as_long_as_there_are(self, output: Path) -> None:
        path = output.with_name(f"{'é' * 120}{output.suffix}")
        check_output(path)
        write_embeddings(path, embeddings(2), {})
        assert len(read(path)) == 2

    def test_a_read_only_file_system(self, output: Path, tmp_path: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can mount a file system")
        command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("cannot mount a read-only file system")
        try:
            with pytest.raises(OutputError, match=f"cannot write {output}: Read-only file system"):
                check_output(output)
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)

    @pytest.mark.parametrize(
        ("mode", "exists", "message"),
        [(0o755, False, "Permission denied"), (0o1777, True, "it is another user's")],
    )
    def test_what_belongs_to_somebody_else(
        self, output: Path, as_nobody: Any, mode: int, exists: bool, message: str
    ) -> None:
        """A folder; and on /tmp, where all may write, a file that only its owner may replace."""
        output.parent.chmod(mode)
        if exists:
            output.touch()
        code = (
            "import sys; from pathlib import Path; from runtime.writers import check_output\n"
            "try: check_output(Path(sys.argv[1]))\n"
            "except OSError as error: print(error)"
        )
        result = as_nobody(sys.executable, "-c", code, output)
        assert f"cannot write {output}: {message}" in result.stdout, result.stderr
        assert list(output.parent.iterdir()) == [output] * exists


def test_staging_waits_an_hour_for_what_has_no_lock_yet(tmp_path: Path) -> None:
    young, old = tmp_path / ".x.1.new", tmp_path / ".x.2.new"
    young.mkdir()
    old.mkdir()
    os.utime(old, (time.time() - 4000,) * 2)
    with staging(tmp_path / "x"):
        assert young.exists()
        assert not old.exists()
