import copy

import pytest
import torch

from exporter.esm2 import ESM2WithFlashAttention, load_esm2_model
from exporter.model.reference import Reference
from runtime.packing import PackedBatch
from tests.conftest import ARCHITECTURE

PROTEINS = [("a", "MKTAYIAKQRQISFVKSHFSRQ"), ("b", "GGAVL<mask>KW"), ("c", "M")]


@pytest.fixture(scope="module")
def model(reference: Reference) -> ESM2WithFlashAttention:
    return ESM2WithFlashAttention(copy.deepcopy(reference.model), "cpu")


@pytest.fixture(scope="module")
def pack() -> PackedBatch:
    return PackedBatch.from_sequences([sequence for _, sequence in PROTEINS])


def run_packed(model: ESM2WithFlashAttention, pack: PackedBatch, **options: object) -> dict:
    return model.forward_packed(
        torch.from_numpy(pack.input_ids), torch.from_numpy(pack.cu_seqlens), pack.max_seqlen,
        **options,
    )  # fmt: skip


def padded_rows(outputs: torch.Tensor, pack: PackedBatch) -> torch.Tensor:
    lengths = pack.cu_seqlens[1:] - pack.cu_seqlens[:-1]
    return torch.cat([row[:length] for row, length in zip(outputs, lengths, strict=True)])


def test_shapes_and_names(model: ESM2WithFlashAttention, pack: PackedBatch) -> None:
    outputs = run_packed(model, pack, repr_layers=[0, 6])
    assert set(outputs) == {"representations", "logits"}
    assert outputs["logits"].shape == (pack.num_tokens, 33)
    assert {k: v.shape for k, v in outputs["representations"].items()} == {
        0: (pack.num_tokens, 320),
        6: (pack.num_tokens, 320),
    }


def test_the_last_layer_is_the_default(model: ESM2WithFlashAttention, pack: PackedBatch) -> None:
    assert set(run_packed(model, pack)["representations"]) == {6}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_v1_equals_the_padded_forward(
    reference: Reference, pack: PackedBatch, dtype: torch.dtype
) -> None:
    model = ESM2WithFlashAttention(copy.deepcopy(reference.model), "cpu", dtype)
    converter = reference.alphabet.get_batch_converter()
    padded = model(converter(PROTEINS)[2], repr_layers=[3, 6])
    v1 = run_packed(model, pack, repr_layers=[3, 6], v1_compatible=True)
    for expected, actual in (
        (padded["logits"], v1["logits"]),
        (padded["representations"][3], v1["representations"][3]),
        (padded["representations"][6], v1["representations"][6]),
    ):
        assert actual.dtype == dtype
        torch.testing.assert_close(actual, padded_rows(expected, pack), atol=1e-6, rtol=1e-6)


def test_packed_equals_the_padded_forward(
    model: ESM2WithFlashAttention, reference: Reference, pack: PackedBatch
) -> None:
    padded = model(reference.alphabet.get_batch_converter()(PROTEINS)[2], repr_layers=[6])
    packed = run_packed(model, pack)["representations"][6]
    expected = padded_rows(padded["representations"][6], pack)
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-5)


def test_environment_takes_the_v1_path(
    model: ESM2WithFlashAttention, pack: PackedBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(model, "_forward_unpacked", lambda *a: calls.append(a))
    run_packed(model, pack)
    assert not calls
    monkeypatch.setenv("VIRNUCPRO_V1_ATTENTION", "true")
    run_packed(model, pack)
    assert len(calls) == 1


def test_no_packed_kernel_takes_the_v1_path(
    model: ESM2WithFlashAttention, pack: PackedBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(model, "_forward_unpacked", lambda *a: calls.append(a))
    monkeypatch.setattr(model, "attention", type(model.attention)("none", False, "none"))
    run_packed(model, pack)
    assert len(calls) == 1


@pytest.mark.parametrize("layer", [-1, 7])
def test_layers_out_of_range(model: ESM2WithFlashAttention, pack: PackedBatch, layer: int) -> None:
    with pytest.raises(ValueError, match=r"layers 0\.\.6"):
        run_packed(model, pack, repr_layers=[layer])
    with pytest.raises(ValueError, match=r"layers 0\.\.6"):
        model(torch.zeros(1, 3, dtype=torch.int64), repr_layers=[layer])


def test_load_esm2_model() -> None:
    model, batch_converter = load_esm2_model(ARCHITECTURE, "cpu", synthetic=True)
    tokens = batch_converter(PROTEINS)[2]
    assert model(tokens)["logits"].shape == (*tokens.shape, 33)
