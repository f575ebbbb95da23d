import logging
import sys
import types

import pytest
import torch

from exporter.attention import (
    configure_flash_attention,
    get_attention_implementation,
    is_flash_attention_available,
)
from exporter.esm2 import ESM2WithFlashAttention
from exporter.model.reference import Reference
from runtime.ops import cuda
from runtime.ops.cuda import choose_kernel, is_flash_attn_current

H200, T4 = (9, 0), (7, 5)


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "flash_attn_version", lambda: "2.8.3")
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    choose_kernel.cache_clear()
    yield
    choose_kernel.cache_clear()


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


def test_flash_attn_is_chosen_on_a_current_gpu(flash_attn: None) -> None:
    assert choose_kernel(H200, torch.bfloat16, 64).name == "flash-attn 2.8.3"


def test_a_flash_attn_that_cannot_be_imported_is_passed_over(
    flash_attn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    choice = choose_kernel(H200, torch.bfloat16, 64)
    assert choice.name == "torch flash"
    assert choice.passed_over[0].startswith("flash-attn 2.8.3: cannot be imported")


def test_float32_takes_the_memory_efficient_kernel(flash_attn: None) -> None:
    choice = choose_kernel(H200, torch.float32, 64)
    assert choice.name == "memory-efficient"
    assert any("needs float16 or bfloat16" in reason for reason in choice.passed_over)


def test_an_old_gpu_says_why(flash_attn: None) -> None:
    choice = choose_kernel(T4, torch.float16, 16)
    assert choice.name == "memory-efficient"
    assert "flash-attn 2.8.3: needs compute capability 8.0, got 7.5" in choice.passed_over


def test_float64_takes_the_standard_kernel(flash_attn: None) -> None:
    assert choose_kernel(H200, torch.float64, 64).name == "standard"


def test_standard_can_be_asked_for(flash_attn: None) -> None:
    assert choose_kernel(H200, torch.bfloat16, 64, "standard").name == "standard"


@pytest.mark.parametrize(
    ("version", "current"),
    [("2.5.9", False), ("2.6.0", True), ("2.8.3.post1", True), ("3.0", True)],
)
def test_flash_attn_versions(version: str, current: bool) -> None:
    assert is_flash_attn_current(version) is current
