import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from exporter.attention import (
    configure_flash_attention,
    get_attention_implementation,
    is_flash_attention_available,
)
from exporter.esm2 import ESM2WithFlashAttention
from exporter.model.reference import Reference
from runtime.errors import UnsupportedError
from runtime.ops.cuda import choose_kernel, is_flash_attn_current
from runtime.ops.standard import standard

B200, H200, A100, T4 = (10, 0), (9, 0), (8, 0), (7, 5)
# The signatures of flash-attn 2.8.3 and flash-attn-3 3.0.0b1, as far as they are used.
FUNCTION = """
from runtime.ops.standard import standard

def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, {more}, softmax_scale=None
):
    assert cu_seqlens_q is cu_seqlens_k and max_seqlen_q == max_seqlen_k
    out = standard(q, k, v, cu_seqlens_q, max_seqlen_q, softmax_scale)
    return {result}
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where packages are found."""
    monkeypatch.syspath_prepend(tmp_path)
    choose_kernel.cache_clear()
    yield tmp_path
    choose_kernel.cache_clear()
    for module in ("flash_attn", "flash_attn_interface"):
        sys.modules.pop(module, None)


def install(site: Path, distribution: str, version: str, module: str, source: str) -> None:
    info = site / f"{distribution}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    )
    (site / f"{module}.py").write_text(source)


@pytest.fixture
def flash_attn(site: Path) -> Path:
    source = FUNCTION.format(more="dropout_p=0.0", result="out")
    install(site, "flash_attn", "2.8.3", "flash_attn", source)
    return site


@pytest.fixture
def flash_attn_3(flash_attn: Path) -> Path:
    """Beside flash-attn."""
    source = FUNCTION.format(more="seqused_q=None, seqused_k=None", result="out")
    install(flash_attn, "flash_attn_3", "3.0.0b1", "flash_attn_interface", source)
    return flash_attn


@pytest.mark.skipif(torch.cuda.is_available(), reason="describes a machine without GPU")
def test_without_a_gpu() -> None:
    implementation = get_attention_implementation()
    assert str(implementation) == "standard attention: no CUDA device"
    assert implementation.runs_packed
    assert not is_flash_attention_available()


@pytest.mark.parametrize("variable", ["ESM2_V1_ATTENTION", "VIRNUCPRO_V1_ATTENTION"])
def test_environment_asks_for_v1(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "true")
    assert not get_attention_implementation().runs_packed


def test_a_device_without_packed_kernels_falls_back() -> None:
    implementation = get_attention_implementation("meta")
    assert not implementation.runs_packed
    assert "no packed kernel for device 'meta'" in str(implementation)


def test_one_log_line(reference: Reference, caplog: pytest.LogCaptureFixture) -> None:
    model = ESM2WithFlashAttention(reference.model, "cpu")
    with caplog.at_level(logging.INFO):
        assert configure_flash_attention(model) is model
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("standard attention: ")


def test_flash_attn_is_chosen_on_a_current_gpu(flash_attn: Path) -> None:
    choice = choose_kernel(H200, torch.bfloat16, 64)
    assert choice.name == "flash-attn 2.8.3"
    assert choice.passed_over == ("flash-attn-3: not installed",)


@pytest.mark.parametrize("source", ["from nowhere import kernels", "version = 1"])
def test_a_flash_attn_without_its_function_is_passed_over(site: Path, source: str) -> None:
    install(site, "flash_attn", "2.8.3", "flash_attn", source)
    choice = choose_kernel(H200, torch.bfloat16, 64)
    assert choice.name == "torch flash"
    assert choice.passed_over[1].startswith("flash-attn 2.8.3: cannot be imported (")


@pytest.mark.parametrize(
    ("capability", "head_dim", "reason"),
    [
        (H200, 64, ""),
        (H200, 128, ""),
        (H200, 32, "needs a head dim of at least 64, got 32"),
        (A100, 64, "needs compute capability 9.0, got 8.0"),
        (B200, 64, "needs compute capability 9.0, got 10.0"),
    ],
)
def test_flash_attn_3_is_for_hopper_and_wide_heads(
    flash_attn_3: Path, capability: tuple[int, int], head_dim: int, reason: str
) -> None:
    choice = choose_kernel(capability, torch.float16, head_dim)
    if reason:
        assert choice.name == "flash-attn 2.8.3"
        assert choice.passed_over == (f"flash-attn-3 3.0.0b1: {reason}",)
    else:
        assert choice.name == "flash-attn-3 3.0.0b1"


def test_a_version_of_flash_attn_can_be_asked_for(flash_attn_3: Path) -> None:
    assert choose_kernel(H200, torch.float16, 64, "flash-attn").name == "flash-attn 2.8.3"
    with pytest.raises(UnsupportedError, match="'flash-attn-3' cannot run here: .* got 32"):
        choose_kernel(H200, torch.float16, 32, "flash-attn-3")


@pytest.mark.parametrize("result", ["out", "(out, None)"])
def test_what_flash_attn_3_is_given(site: Path, result: str) -> None:
    """Older builds of it give the log-sum-exp too."""
    source = FUNCTION.format(more="seqused_q=None, seqused_k=None", result=result)
    install(site, "flash_attn_3", "3.0.0b1", "flash_attn_interface", source)
    q, k, v = torch.randn(3, 20, 2, 64, generator=torch.Generator().manual_seed(0))
    arguments = torch.tensor([0, 13, 20], dtype=torch.int32), 13, 0.25
    found = choose_kernel(H200, torch.float16, 64).kernel(q, k, v, *arguments)
    torch.testing.assert_close(found, standard(q, k, v, *arguments))


def test_float32_takes_the_memory_efficient_kernel(flash_attn_3: Path) -> None:
    choice = choose_kernel(H200, torch.float32, 64)
    assert choice.name == "memory-efficient"
    assert any("needs float16 or bfloat16" in reason for reason in choice.passed_over)


def test_an_old_gpu_says_why(flash_attn: Path) -> None:
    choice = choose_kernel(T4, torch.float16, 16)
    assert choice.name == "memory-efficient"
    assert "flash-attn 2.8.3: needs compute capability 8.0, got 7.5" in choice.passed_over


def test_float64_takes_the_standard_kernel(flash_attn: Path) -> None:
    assert choose_kernel(H200, torch.float64, 64).name == "standard"


def test_standard_can_be_asked_for(flash_attn: Path) -> None:
    assert choose_kernel(H200, torch.bfloat16, 64, "standard").name == "standard"


@pytest.mark.parametrize(
    ("version", "current"),
    [("2.5.9", False), ("2.6.0", True), ("2.8.3.post1", True), ("3.0", True)],
)
def test_flash_attn_versions(version: str, current: bool) -> None:
    assert is_flash_attn_current(version) is current
