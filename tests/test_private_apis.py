"""Private APIs of other libraries that this project stands on: all of them, and that they are here.

Seen in PyTorch 2.11 and 2.13, ONNX Runtime 1.23 to 1.31, fair-esm 2.0, Ray 2.60. A new version of
one of them is to be tried with this list in hand.
"""

import importlib
import re
from pathlib import Path

import esm.rotary_embedding
import onnxruntime
import pytest
import torch

ROOT = Path(__file__).parents[1]

# Where it stands in the code -> a dotted name that must exist.
PRIVATE = {
    "torch.fx.experimental._config": "torch.fx.experimental._config.backed_size_oblivious",
    "torch.utils._python_dispatch": "torch.utils._python_dispatch.TorchDispatchMode",
    "torch._inductor": "torch._inductor.aoti_compile_and_package",
    "torch._C": "torch._C._aoti.AOTIModelContainerRunnerCpu",
    "torch.ops.aten._flash_attention_forward": "torch.ops.aten._flash_attention_forward",
    "torch.ops.aten._efficient_attention_forward": "torch.ops.aten._efficient_attention_forward",
}
USED = re.compile(r"\btorch(?:\.\w+)*?\._[a-zA-Z]\w*")


@pytest.mark.parametrize("name", PRIVATE.values())
def test_it_is_there(name: str) -> None:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return
    pytest.fail(f"no {name} in torch {torch.__version__}")


def test_there_are_no_others() -> None:
    code = "".join(
        path.read_text() for room in ("exporter", "runtime") for path in (ROOT / room).rglob("*.py")
    )
    assert set(USED.findall(code)) == set(PRIVATE)


def test_fair_esms_rotary_tables_have_the_name_that_forgets_them() -> None:
    embedding = esm.rotary_embedding.RotaryEmbedding(16)
    assert embedding._seq_len_cached is None


def test_ray_prints_by_the_function_that_is_replaced() -> None:
    worker = pytest.importorskip("ray._private.worker")
    assert callable(worker.print_to_stdstream)


def test_the_slots_of_onnxruntime_are_of_a_version_that_it_still_serves() -> None:
    header = (ROOT / "runtime/ops/native/onnxruntime_api.h").read_text()
    version = re.search(r"api_version = (\d+);", header)
    assert version
    assert int(version[1]) <= int(onnxruntime.__version__.split(".")[1])


def test_the_flash_kernel_takes_what_the_native_op_hands_over() -> None:
    """15 values in PyTorch 2.11, 17 in 2.13."""
    schema = torch.ops.aten._flash_attention_forward.default._schema
    given = "query key value cum_seq_q cum_seq_k max_q max_k dropout_p is_causal return_debug_mask"
    names = [argument.name for argument in schema.arguments]
    assert names[:11] == [*given.split(), "scale"]
    # Zeros are none: what follows must be free to be none.
    assert all("Optional" in str(argument.type) for argument in schema.arguments[11:])
