"""PyTorch's engines in programs with threads, and with settings, of their own."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(request: pytest.FixtureRequest, engine: str) -> Path:
    path: Path = request.getfixturevalue(
        "compiled_artifact" if engine == "aoti" else "tiny_artifact"
    )
    return path


@pytest.mark.parametrize("engine", ["aoti", "torchscript"])
@pytest.mark.parametrize("attention", ["auto", "standard"])
def test_threads_that_share_an_engine_are_all_answered(
    folder: Path, engine: str, attention: str, fresh_python: Run
) -> None:
    """Two of them waited for each other for ever: in AOTInductor, and in the op in Python."""
    code = (
        "import threading, numpy as np, runtime\n"
        "engine = runtime.load(sys.argv[1], sys.argv[2], 'cpu', sys.argv[3], threads=1)\n"
        "packs = [runtime.PackedBatch.from_sequences(['MKTAYIAK' * n, 'GG' * (n + 1)])"
        " for n in range(1, 5)]\n"
        "right = [engine.run(pack).logits for pack in packs]\n"
        "wrong = []\n"
        "def ask(i):\n"
        "    for _ in range(40):\n"
        "        if not np.array_equal(engine.run(packs[i]).logits, right[i]): wrong.append(i)\n"
        "threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(4)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join(60)\n"
        "print(engine.spec.attention, any(t.is_alive() for t in threads), wrong, flush=True)\n"
        "import os; os._exit(0)"
    )
    result = fresh_python(code, folder, engine, attention)
    said, ended = result.stdout.rsplit(" ", 2)[0], result.stdout.rsplit(" ", 2)[1:]
    assert said.startswith("native (" if attention == "auto" else "standard"), result.stderr
    assert ended == ["False", "[]\n"]


def test_the_native_kernel_is_called_without_python(
    compiled_artifact: Path, fresh_python: Run
) -> None:
    code = (
        "import runtime\n"
        "from runtime.ops import varlen_attention\n"
        "calls = []\n"
        "kernel = varlen_attention._chosen.get\n"
        "engine = runtime.load(sys.argv[1], 'aoti', threads=1)\n"
        "profiled = lambda frame, event, _: calls.append(frame.f_code.co_name)\n"
        "pack = runtime.PackedBatch.from_sequences(['MKTAYIAK'])\n"
        "sys.setprofile(profiled)\n"
        "engine.run(pack)\n"
        "sys.setprofile(None)\n"
        "print('run' in calls, '_attend' in calls)"
    )
    result = fresh_python(code, compiled_artifact)
    assert result.stdout == "True False\n", result.stderr


def test_threads_that_load_two_artifacts_both_get_the_native_kernel(
    tiny_artifact: Path, compiled_artifact: Path, fresh_python: Run
) -> None:
    """One took the variable away while the other's library looked for it."""
    code = (
        "import os, threading, runtime, runtime.ops.varlen_attention as op\n"
        "both = threading.Barrier(2)\n"
        "found = []\n"
        "def load(folder, engine):\n"
        "    both.wait()\n"
        "    found.append(runtime.load(folder, engine, check_files=False).spec.attention[:8])\n"
        "threads = [threading.Thread(target=load, args=a) for a in"
        " ((sys.argv[1], 'torchscript'), (sys.argv[2], 'aoti'))]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "print(found, os.environ.get(op.IN_PYTHON_VARIABLE))"
    )
    result = fresh_python(code, tiny_artifact, compiled_artifact)
    assert result.stdout == "['native (', 'native ('] None\n", result.stderr
    assert not result.stderr


@pytest.mark.parametrize("engine", ["aoti", "torchscript"])
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_a_program_that_sets_precisions_by_the_new_names(
    folder: Path, engine: str, precision: str, fresh_python: Run
) -> None:
    """Reading the old switch is an error there, and every forward read it."""
    code = (
        "import torch, runtime\n"
        "torch.backends.cuda.matmul.fp32_precision = sys.argv[3]\n"
        "torch.backends.cudnn.fp32_precision = sys.argv[3]\n"
        "with runtime.load(sys.argv[1], sys.argv[2], 'cpu') as engine:\n"
        "    outputs = engine.run(runtime.PackedBatch.from_sequences(['MKTAYIAK']))\n"
        "print(outputs.logits.shape, torch.backends.cuda.matmul.fp32_precision)"
    )
    result = fresh_python(code, folder, engine, precision)
    assert result.stdout == f"(10, 33) {precision}\n", result.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs an affinity mask")
def test_pytorch_keeps_to_the_cores_that_there_are(tiny_artifact: Path, fresh_python: Run) -> None:
    """It counts them when it is imported, and knows no quota."""
    code = (
        "import os, torch, runtime\n"
        "torch.set_num_threads(3)\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "for threads in (None, 2, None):\n"
        "    runtime.load(sys.argv[1], 'torchscript', threads=threads, check_files=False)\n"
        "    print(torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    result = fresh_python(code, tiny_artifact, env=environment)
    assert result.stdout.split() == ["1", "2", "1"], result.stderr


class TestUnpackedPackages:
    LOAD = (
        "import runtime\n"
        "with runtime.load(sys.argv[1], 'aoti', check_files=False) as engine:\n"
        "    print(engine.run(runtime.PackedBatch.from_sequences(['MKTAYIAK'])).logits.shape)"
    )
    KILLED = (
        "import os\n"
        "from runtime.engines.torch import aoti\n"
        "aoti._open_runner = lambda library, device: os.kill(os.getpid(), 9)\n"
    )

    def test_nothing_is_left(
        self, compiled_artifact: Path, tmp_path: Path, fresh_python: Run
    ) -> None:
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        result = fresh_python(self.LOAD, compiled_artifact, env=environment)
        assert result.stdout == "(10, 33)\n", result.stderr
        assert not list(tmp_path.iterdir())

    def test_what_a_killed_process_left_goes_with_the_next_load(
        self, compiled_artifact: Path, tmp_path: Path, fresh_python: Run
    ) -> None:
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        killed = fresh_python(self.KILLED + self.LOAD, compiled_artifact, env=environment)
        assert killed.returncode == -9
        (left,) = tmp_path.iterdir()
        assert list(left.rglob("*.so"))
        result = fresh_python(self.LOAD, compiled_artifact, env=environment)
        assert result.stdout == "(10, 33)\n", result.stderr
        assert not list(tmp_path.iterdir())
