"""``gpu-check``'s verdict on attention kernels."""

import pytest
from torch import Tensor

from benchmarks.gpu_check.attention import check_kernel
from runtime.attention import Attention
from runtime.ops import varlen_attention
from runtime.ops.choice import Choice, Kernel
from runtime.ops.standard import standard

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kernel", ["auto", "standard"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_kernels_of_this_device_pass(kernel: Attention, dtype: str) -> None:
    status, reason, measured = check_kernel(kernel, dtype, "cpu")
    assert (status, reason) == ("passed", "")
    assert measured is not None
    assert 0 < measured.worst_relative_l2 < (1e-6 if dtype == "float32" else 1e-2)


def test_a_kernel_of_another_device_is_not_run() -> None:
    status, reason, measured = check_kernel("flash", "bfloat16", "cpu")
    assert (status, measured) == ("not run", None)
    assert "it is for CUDA" in reason


def scale_off(q: Tensor, *rest: object) -> Tensor:
    *others, scale = rest
    return standard(q, *others, 1.02 * scale)


def boundaries_ignored(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, *rest: object) -> Tensor:
    return standard(q, k, v, bounds[[0, -1]], *rest)


@pytest.mark.parametrize("wrong", [scale_off, boundaries_ignored])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_kernel_fails(wrong: Kernel, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice("wrong", wrong)
    monkeypatch.setattr(varlen_attention, "choose", lambda *_: choice)
    status, reason, measured = check_kernel("auto", dtype, "cpu")
    assert status == "failed"
    assert reason.startswith("head dim 16: relative L2 ")
    assert measured is not None
    assert measured.worst_ratio_to_standard > 2
