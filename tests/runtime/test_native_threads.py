"""The native op and its host's threads: how it splits its work, and what happens without memory."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest

from exporter.formats.native import ONNXRUNTIME_LIBRARY, TORCH_LIBRARY, compile_libraries

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def attention_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of one node."""
    make = onnx.helper
    floats, ints = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    rows = ["T", "H", "D"]
    inputs = [make.make_tensor_value_info(name, floats, rows) for name in "qkv"]
    inputs.append(make.make_tensor_value_info("cu_seqlens", ints, ["N"]))
    inputs.append(make.make_tensor_value_info("max_seqlen", onnx.TensorProto.INT64, []))
    node = make.make_node(
        "VarlenAttention", [i.name for i in inputs], ["out"], domain="esm2", softmax_scale=0.25
    )
    graph = make.make_graph(
        [node], "attention", inputs, [make.make_tensor_value_info("out", floats, rows)]
    )
    opsets = [make.make_opsetid("", 18), make.make_opsetid("esm2", 1)]
    path = tmp_path_factory.mktemp("graph") / "attention.onnx"
    onnx.save(make.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


# Idle threads of the pool sleep here, so that the runnable ones are those which work.
SESSION = (
    "import threading, time, os, resource, numpy as np, onnxruntime\n"
    "options = onnxruntime.SessionOptions()\n"
    "options.log_severity_level = 4\n"
    "options.intra_op_num_threads = int(sys.argv[3])\n"
    "options.add_session_config_entry('session.intra_op.allow_spinning', '0')\n"
    "options.add_session_config_entry('esm2.threads', sys.argv[3])\n"
    "options.register_custom_ops_library(sys.argv[2])\n"
    "session = onnxruntime.InferenceSession(sys.argv[1], options)\n"
    "def feeds(tokens, heads, dim, bounds):\n"
    "    q = np.zeros((tokens, heads, dim), np.float32)\n"
    "    length = np.array(max(np.diff(bounds)), np.int64)\n"
    "    return {'q': q, 'k': q, 'v': q, 'cu_seqlens': np.array(bounds, np.int32),"
    " 'max_seqlen': length}\n"
)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_the_work_is_split_for_the_pool_of_the_session(
    attention_alone: Path, fresh_python: Run, threads: int
) -> None:
    """It was split for the cores of the machine, whatever the pool."""
    code = SESSION + (
        "from benchmarks.threads import runnable_threads\n"
        "inputs = feeds(6000, 20, 32, [0, 6000])\n"
        "running = threading.Thread(target=session.run, args=(None, inputs))\n"
        "running.start()\n"
        "most = 0\n"
        "while running.is_alive():\n"
        "    most = max(most, runnable_threads(os.getpid()) - 1)\n"
        "    time.sleep(0.005)\n"
        "print(most)"
    )
    result = fresh_python(code, attention_alone, compile_libraries() / ONNXRUNTIME_LIBRARY, threads)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == threads


def test_a_pool_of_no_threads_is_refused() -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("esm2.threads", "none")
    with pytest.raises(Exception, match="esm2.threads must be a whole number"):
        options.register_custom_ops_library(str(compile_libraries() / ONNXRUNTIME_LIBRARY))


# A head so wide that a thread's scratch, some 50 rows of it, is far larger than the pack.
WIDE = 1 << 22
WITHOUT_MEMORY = (
    "import resource\n"
    "def limit():\n"
    "    pages = int(open('/proc/self/statm').read().split()[0])\n"
    "    most = pages * resource.getpagesize() + (400 << 20)\n"
    "    resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
)


def test_a_thread_without_memory_is_an_error_of_onnxruntime(
    attention_alone: Path, fresh_python: Run
) -> None:
    """An exception in a thread of the pool ended the process."""
    code = SESSION + WITHOUT_MEMORY + (
        "small = feeds(600, 4, 16, [0, 300, 600])\n"
        "session.run(None, small)\n"
        f"inputs = feeds(4, 1, {WIDE}, [0, 1, 2, 3, 4])\n"
        "limit()\n"
        "for _ in range(3):\n"
        "    try:\n"
        "        session.run(None, inputs)\n"
        "    except Exception as error:\n"
        "        print('out of memory' in str(error))\n"
        "print(session.run(None, small)[0].shape)\n"
    )  # fmt: skip
    result = fresh_python(code, attention_alone, compile_libraries() / ONNXRUNTIME_LIBRARY, 4)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["True"] * 3 + ["(600, 4, 16)"]


def test_a_thread_without_memory_is_an_error_of_pytorch(fresh_python: Run) -> None:
    code = WITHOUT_MEMORY + (
        "import torch; torch.ops.load_library(sys.argv[1]); torch.set_num_threads(4)\n"
        "attend = torch.ops.esm2.varlen_attention\n"
        "small = torch.zeros(600, 4, 16), torch.tensor([0, 300, 600], dtype=torch.int32)\n"
        "def run(q, bounds): return attend(q, q, q, bounds, 300, 0.25)\n"
        "run(*small)\n"
        f"wide = torch.zeros(4, 1, {WIDE}), torch.arange(5, dtype=torch.int32)\n"
        "limit()\n"
        "try:\n"
        "    run(*wide)\n"
        "except RuntimeError as error:\n"
        "    print(str(error).splitlines()[0])\n"
        "print(run(*small).shape)"
    )
    result = fresh_python(code, compile_libraries() / TORCH_LIBRARY)
    assert result.returncode == 0, result.stderr
    said, shape = result.stdout.splitlines()
    assert said == "esm2::varlen_attention: out of memory"
    assert shape == "torch.Size([600, 4, 16])"
