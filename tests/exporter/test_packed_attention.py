import pytest
import torch

from exporter import packed_attention
from exporter.packed_attention import create_position_ids_packed, flash_attn_varlen_wrapper


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_positions_restart_at_each_boundary(dtype: torch.dtype) -> None:
    position_ids = create_position_ids_packed(torch.tensor([0, 3, 7, 10], dtype=dtype))
    assert position_ids.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2]
    assert position_ids.dtype == torch.int64


def test_positions_of_one_token() -> None:
    assert create_position_ids_packed(torch.tensor([0, 1])).tolist() == [0]


def test_positions_match_a_loop() -> None:
    lengths = torch.randint(1, 50, (300,), generator=torch.Generator().manual_seed(0))
    cu_seqlens = torch.cat([torch.tensor([0]), lengths.cumsum(0)])
    expected = torch.cat([torch.arange(n) for n in lengths.tolist()])
    assert torch.equal(create_position_ids_packed(cu_seqlens), expected)


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        (torch.tensor([1, 3]), r"start at 0, got cu_seqlens\[0\] = 1"),
        (torch.tensor([0, 3, 3]), r"cu_seqlens\[1\] = 3, cu_seqlens\[2\] = 3"),
        (torch.tensor([0, 5, 2, 9]), r"cu_seqlens\[1\] = 5, cu_seqlens\[2\] = 2"),
        (torch.tensor([0.0, 3.0]), "int32 or int64, got torch.float32"),
        (torch.tensor([[0, 3]]), r"1-D \[N \+ 1\] with N >= 1, got \[1, 2\]"),
        (torch.tensor([0]), r"N >= 1, got \[1\]"),
    ],
)
def test_malformed_cu_seqlens_name_the_place(cu_seqlens: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_position_ids_packed(cu_seqlens)


def test_wrapper_without_flash_attn_gives_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_attention, "FLASH_ATTN_AVAILABLE", False)
    q = torch.zeros(4, 2, 16, dtype=torch.float16)
    with pytest.raises(ImportError, match="pip install 'flash-attn>=2.6.0'"):
        flash_attn_varlen_wrapper(q, q, q, torch.tensor([0, 4], dtype=torch.int32), 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the message on a machine without GPU")
def test_wrapper_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_attention, "FLASH_ATTN_AVAILABLE", True)
    q = torch.zeros(4, 2, 16, dtype=torch.float16)
    with pytest.raises(RuntimeError, match="needs a CUDA GPU"):
        flash_attn_varlen_wrapper(q, q, q, torch.tensor([0, 4], dtype=torch.int32), 4)


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that seems to have what flash-attn needs: its inputs are what is checked."""
    monkeypatch.setattr(packed_attention, "FLASH_ATTN_AVAILABLE", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))


def test_wrapper_on_an_old_gpu(ampere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
    q = torch.zeros(4, 2, 16, dtype=torch.float16)
    with pytest.raises(RuntimeError, match=r">= 8.0 \(Ampere\), Tesla T4 has 7.5"):
        flash_attn_varlen_wrapper(q, q, q, torch.tensor([0, 4], dtype=torch.int32), 4)


@pytest.mark.parametrize(
    ("q_shape", "dtype", "cu_dtype", "message"),
    [
        ((4, 2, 16), torch.float32, torch.int32, "q must be float16 or bfloat16"),
        ((4, 2, 16), torch.float16, torch.int64, "cu_seqlens must be int32, got torch.int64"),
        ((4, 32), torch.float16, torch.int32, r"q must be \[T, H, D\], got \[4, 32\]"),
        ((4, 3, 16), torch.float16, torch.int32, "must have one shape"),
    ],
)
def test_wrapper_refuses_what_flash_attn_cannot_take(
    ampere: None, q_shape: tuple[int, ...], dtype: torch.dtype, cu_dtype: torch.dtype, message: str
) -> None:
    q = torch.zeros(q_shape, dtype=dtype)
    k = torch.zeros(4, 2, 16, dtype=torch.float16)
    with pytest.raises(ValueError, match=message):
        flash_attn_varlen_wrapper(q, k, k, torch.tensor([0, 4], dtype=cu_dtype), 4)
