from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from runtime.attention import Attention
from runtime.errors import UnsupportedError
from runtime.ops import varlen_attention

LENGTHS = (7, 1, 30, 12, 12, 12)
CU_SEQLENS = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)


@pytest.fixture(autouse=True)
def without_the_native_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Which a test before may have loaded; tests/runtime/test_native.py is about that."""
    monkeypatch.setattr(varlen_attention, "_native", None)
    before = varlen_attention._attend_in_python(True)
    yield
    varlen_attention._attend_in_python(before)


def qkv(head_dim: int = 16, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (sum(LENGTHS), 4, head_dim)
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    return q, k, v


def asked_for(requested: Attention, q: Tensor) -> AbstractContextManager[None]:
    choice = varlen_attention.choose(q.device, q.dtype, q.shape[-1], requested)
    return varlen_attention.using(choice)


def expected(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention written out, one protein at a time, in float64."""
    rows = []
    for start, end in zip(CU_SEQLENS[:-1], CU_SEQLENS[1:], strict=True):
        a, b, c = (x[start:end].double() for x in (q, k, v))
        weights = torch.einsum("ihd,jhd->hij", a, b).mul(scale).softmax(-1)
        rows.append(torch.einsum("hij,jhd->ihd", weights, c))
    return torch.cat(rows)


@pytest.mark.parametrize("head_dim", [16, 24, 32, 64, 128])
@pytest.mark.parametrize("requested", ["auto", "standard"])
def test_equals_attention_written_out(head_dim: int, requested: Attention) -> None:
    q, k, v = qkv(head_dim)
    scale = head_dim**-0.5
    with asked_for(requested, q):
        out = torch.ops.esm2.varlen_attention(q, k, v, CU_SEQLENS, 30, scale)
    torch.testing.assert_close(out.double(), expected(q, k, v, scale), atol=2e-6, rtol=1e-5)
    assert out.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("requested", ["auto", "standard"])
def test_other_dtypes(dtype: torch.dtype, requested: Attention) -> None:
    q, k, v = qkv(dtype=dtype)
    with asked_for(requested, q):
        out = torch.ops.esm2.varlen_attention(q, k, v, CU_SEQLENS, 30, 0.25)
    assert out.dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        out.double(), expected(q, k, v, 0.25), atol=tolerance, rtol=tolerance
    )


def test_inputs_that_are_not_contiguous() -> None:
    q, k, v = qkv()
    wide = torch.cat([q, k, v], dim=-1)
    views = wide.split(16, dim=-1)
    assert not views[0].is_contiguous()
    out = torch.ops.esm2.varlen_attention(*views, CU_SEQLENS, 30, 0.25)
    torch.testing.assert_close(out, torch.ops.esm2.varlen_attention(q, k, v, CU_SEQLENS, 30, 0.25))


def test_opcheck() -> None:
    arguments = (*qkv(), CU_SEQLENS, 30, 0.25)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.esm2.varlen_attention.default, arguments, test_utils=tests)


def test_the_kernel_asked_for_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(
        varlen_attention, "standard", lambda q, *rest: ran.append("standard") or q.clone()
    )
    monkeypatch.setattr(
        varlen_attention.cpu, "sdpa", lambda q, *rest: ran.append("sdpa") or q.clone()
    )
    arguments = (*qkv(), CU_SEQLENS, 30, 0.25)
    torch.ops.esm2.varlen_attention(*arguments)
    with asked_for("standard", arguments[0]):
        torch.ops.esm2.varlen_attention(*arguments)
    torch.ops.esm2.varlen_attention(*arguments)
    assert ran == ["sdpa", "standard", "sdpa"]


def test_kernels_for_cuda_are_refused_on_a_cpu() -> None:
    with pytest.raises(UnsupportedError, match="'flash' cannot run here: it is for CUDA"):
        varlen_attention.choose(torch.device("cpu"), torch.float32, 16, "flash")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("requested", ["auto", "standard"])
def test_on_a_gpu(dtype: torch.dtype, requested: Attention) -> None:
    q, k, v = (x.cuda() for x in qkv(dtype=dtype))
    with asked_for(requested, q):
        out = torch.ops.esm2.varlen_attention(q, k, v, CU_SEQLENS.cuda(), 30, 0.25)
    tolerance = 16 * torch.finfo(dtype).eps
    truth = expected(q.cpu(), k.cpu(), v.cpu(), 0.25)
    torch.testing.assert_close(out.cpu().double(), truth, atol=tolerance, rtol=tolerance)
