"""``esm2::rotary`` against rotary positions written out, on a machine without a card."""

import functools
import importlib.util
import logging
import subprocess
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from exporter.formats.format import TORCH_LIBRARY
from exporter.formats.native import compile_libraries
from runtime.ops import rotary

Run = Callable[..., subprocess.CompletedProcess[str]]

# In a process of its own: triton decides when it is imported whether kernels are interpreted. The
# interpreter cuts bfloat16 off where a card rounds to nearest.
INTERPRETED = """
import torch
from runtime.ops.rotary_triton import rotary

def written_out(x, cos, sin):
    half = x.shape[-1] // 2
    swapped = torch.cat([x[..., half:], x[..., :half]], dim=-1)
    exact = x * cos + swapped * sin
    if x.dtype == torch.bfloat16:
        exact = (exact.view(torch.int32) & -65536).view(torch.float32)
    return exact.to(x.dtype)

for head_dim in (2, 16, 24, 32, 40, 64, 128):
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for tokens, heads in ((1, 1), (37, 5), (70, 3), (0, 4)):
            x = torch.randn(tokens, heads + 1, head_dim).to(dtype)[:, :heads]
            table = torch.promote_types(dtype, torch.float32)
            cos, sin = (torch.randn(tokens, 1, head_dim, dtype=table) for _ in range(2))
            out = rotary(x, cos, sin)
            assert out.is_contiguous() and out.dtype == dtype
            torch.testing.assert_close(out, written_out(x, cos, sin), rtol=0, atol=0)
print("same")
"""

NATIVE = """
import sys, torch
torch.ops.load_library(sys.argv[1])
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    x = torch.randn(7, 3, 16).to(dtype)
    cos, sin = torch.randn(7, 1, 16), torch.randn(7, 1, 16)
    swapped = torch.cat([x[..., 8:], x[..., :8]], dim=-1)
    expected = (x * cos + swapped * sin).to(dtype)
    assert torch.equal(torch.ops.esm2.rotary(x, cos, sin), expected)
print("same")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton has no wheel here")
def test_the_kernel_for_cards_is_rotary_written_out(
    fresh_python: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    result = fresh_python(INTERPRETED)
    assert result.stdout.strip() == "same", result.stderr


def test_the_library_defines_it_for_hosts_without_python(fresh_python: Run) -> None:
    result = fresh_python(NATIVE, compile_libraries() / TORCH_LIBRARY)
    assert result.stdout.strip() == "same", result.stderr


class TestOnACard:
    """Which kernel the op runs there; here its function is called with tensors of the CPU."""

    @pytest.fixture(autouse=True)
    def not_tried_yet(self) -> Iterator[None]:
        rotary._on_card.cache_clear()
        yield
        rotary._on_card.cache_clear()

    def test_what_cannot_be_fused_runs_and_is_said(self, caplog: pytest.LogCaptureFixture) -> None:
        x, table = torch.randn(5, 2, 8), torch.randn(5, 1, 8)
        assert torch.equal(
            rotary._rotary_on_cuda(x, table, table), rotary.in_torch(x, table, table)
        )
        with caplog.at_level(logging.WARNING):
            rotary.warn_unless_fused()
        assert "Triton cannot run" in caplog.text
        assert "\n" not in caplog.messages[0]

    def test_what_can_be_fused_is_and_nothing_is_said(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def kernel(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            return x + 1

        monkeypatch.setattr(rotary, "_on_card", functools.cache(lambda: (kernel, "")))
        x = torch.zeros(1, 1, 2)
        assert rotary._rotary_on_cuda(x, x, x).sum() == 2
        rotary.warn_unless_fused()
        assert not caplog.messages
