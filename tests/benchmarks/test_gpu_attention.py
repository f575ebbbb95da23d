"""``gpu-check``'s verdict on attention kernels."""

import pytest
from torch import Tensor

from benchmarks.gpu_check.attention import check_kernel
from runtime.attention import Attention
from runtime.errors import UnsupportedError
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


def test_head_dims_that_a_kernel_does_not_take_are_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose = varlen_attention.choose

    def wide_heads_alone(device: object, dtype: object, head_dim: int, requested: object) -> Choice:
        if head_dim < 64:
            raise UnsupportedError("needs a head dim of at least 64")
        return choose(device, dtype, head_dim, requested)  # type: ignore[arg-type]

    monkeypatch.setattr(varlen_attention, "choose", wide_heads_alone)
    status, _, measured = check_kernel("auto", "float16", "cpu")
    assert status == "passed"
    assert measured is not None
    assert measured.head_dims == 2


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
