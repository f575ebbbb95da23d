import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from exporter.model.packed_forward import PackedESM2, pool_packed, rotary_tables
from exporter.model.reference import Reference
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.packs import Protein
from runtime.manifest_schema import EMBEDDING
from runtime.packing import PackedBatch
from runtime.pooling import pool
from tests.conftest import LAYERS

Pack = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def double(reference: Reference) -> PackedESM2:
    return PackedESM2(copy.deepcopy(reference.model), LAYERS, "mean").eval().double()


def test_float64_equals_the_oracle_to_rounding(
    reference: Reference, double: PackedESM2, sequences: list[str], tensors: Pack
) -> None:
    packs = {"pack": [Protein(sequence) for sequence in sequences]}
    oracle = run_eager(reference, packs, LAYERS, "mean", torch.float64)["pack"].tensors
    with torch.no_grad():
        logits, *representations, pooled = double(*tensors)
    np.testing.assert_allclose(logits, oracle["logits"], atol=1e-11)
    for layer, values in zip(LAYERS, representations, strict=True):
        np.testing.assert_allclose(values, oracle[f"representations.{layer}"], atol=1e-11)
    np.testing.assert_allclose(pooled, oracle[EMBEDDING], atol=1e-11)


def test_parameters_keep_fair_esms_names(reference: Reference) -> None:
    ours = set(PackedESM2(reference.model).state_dict()) - {"inv_freq"}
    theirs = {
        name
        for name in reference.model.state_dict()
        if not name.startswith("contact_head") and "inv_freq" not in name
    }
    assert theirs - ours == {"lm_head.weight"}
    assert ours <= theirs


def test_output_names(reference: Reference) -> None:
    assert PackedESM2(reference.model, (6, 0), "cls").output_names == (
        "logits",
        "representations.0",
        "representations.6",
        "pooled",
    )


@pytest.mark.parametrize("layers", [(7,), (-1,), (3, 99)])
def test_layers_out_of_range_list_the_range(reference: Reference, layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"layers 0\.\.6"):
        PackedESM2(reference.model, layers)


def test_half_precision_keeps_the_frequencies(reference: Reference) -> None:
    packed = PackedESM2(copy.deepcopy(reference.model))
    before = packed.inv_freq.clone()
    packed.half()
    assert packed.embed_tokens.weight.dtype == torch.float16
    assert torch.equal(packed.inv_freq, before)


def test_rotary_tables_of_long_positions_do_not_collide_in_bfloat16(reference: Reference) -> None:
    packed = PackedESM2(copy.deepcopy(reference.model)).bfloat16()
    cos, _ = rotary_tables(torch.tensor([1000, 1001]), packed.inv_freq, 20)
    assert not torch.equal(cos[0], cos[1])


@pytest.mark.parametrize("how", ["mean", "mean-with-eos", "cls"])
def test_pooling_in_the_graph_equals_the_runtimes(how: str, batch: PackedBatch) -> None:
    tokens = [
        *np.split(batch.input_ids, batch.cu_seqlens[1:-1]),
        np.array([5]),
        np.array([0, 7, 2]),
    ]
    pack = PackedBatch.from_tokens(tokens)
    x = torch.randn(pack.num_tokens, 8, generator=torch.Generator().manual_seed(1))
    in_graph = pool_packed(x, torch.from_numpy(pack.cu_seqlens), how)
    np.testing.assert_allclose(in_graph, pool(x.numpy(), pack.cu_seqlens, how), rtol=1e-6)
