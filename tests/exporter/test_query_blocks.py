"""Long proteins in blocks of queries: the same answers as fair-esm's own, without whole scores."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from exporter.model.precision import cast_copy
from exporter.model.reference import Reference, WeightsSource, load_reference
from exporter.parity.truth.oracle import needs_whole_scores, run_eager
from exporter.parity.truth.packs import Pack, Protein
from exporter.parity.truth.query_blocks import QUERIES, in_query_blocks

LENGTHS = [1, 2, QUERIES - 1, QUERIES, QUERIES + 1, 2 * QUERIES, 2 * QUERIES + 1, 500]


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> Reference:
    return load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))


@pytest.fixture(scope="module")
def wide(tiny: Reference) -> Any:
    """In float64 but for its softmax, which fair-esm takes in float32."""
    return cast_copy(tiny.model, torch.float64).double()


@pytest.fixture
def float64_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "esm.multihead_attention.utils_softmax",
        lambda x, dim, onnx_trace=False: torch.softmax(x, dim),
    )


def answers(model: Any, length: int) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(length)
    tokens = torch.randint(4, 33, (1, length), generator=drawn)
    with torch.no_grad():
        found = model(tokens, repr_layers=[0, 1, 2])
    layers = {str(layer): x for layer, x in found["representations"].items()}
    return {"logits": found["logits"], **layers}


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.usefixtures("float64_softmax")
@pytest.mark.parametrize("length", LENGTHS)
def test_in_float64_it_is_fair_esm(wide: Any, length: int) -> None:
    whole = answers(wide, length)
    with in_query_blocks(wide):
        blocks = answers(wide, length)
    for name, expected in whole.items():
        assert apart(blocks[name], expected) < 1e-12, name
    assert answers(wide, length).keys() == whole.keys()
    assert "forward" not in vars(wide.layers[0].self_attn), "fair-esm's own is put back"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", [QUERIES + 1, 500])
def test_in_an_engines_dtype_it_errs_as_eager_does(
    tiny: Reference, wide: Any, length: int, dtype: torch.dtype
) -> None:
    truth = answers(wide, length)
    eager = cast_copy(tiny.model, dtype).to(dtype)
    whole = answers(eager, length)
    with in_query_blocks(eager):
        blocks = answers(eager, length)
    for name, expected in truth.items():
        assert apart(blocks[name], expected) <= 1.05 * apart(whole[name], expected), name
        assert apart(blocks[name], whole[name]) <= apart(whole[name], expected), name


def test_long_proteins_alone_are_in_blocks(
    tiny: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []

    def watched(x: Tensor, dim: int) -> Tensor:
        rows.append(x.shape[1])
        return softmax(x, dim)

    softmax = torch.softmax
    pack: Pack = [Protein("LAGV" * 70), Protein("MKV" * 10), Protein("A" * 62)]
    arguments: Any = ({"some": pack}, (0, 2), "mean", torch.float64)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "softmax", watched)
        whole = run_eager(tiny, *arguments)["some"]
        assert rows == 2 * [282] + 2 * [32] + 2 * [64]
        rows.clear()
        patched.setattr("exporter.parity.truth.oracle.LONGEST", 64)
        blocks = run_eager(tiny, *arguments)["some"]
    assert rows == 2 * [128, 128, 26] + 2 * [32] + 2 * [64]
    for name, expected in whole.tensors.items():
        found = blocks.tensors[name]
        assert apart(torch.from_numpy(found), torch.from_numpy(expected)) < 1e-12
        first = 1 if name == "embedding" else 282
        assert (found[first:] == expected[first:]).all(), "short ones keep their bits"


def test_contacts_are_read_off_whole_maps(tiny: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.parity.truth.oracle.LONGEST", 64)
    monkeypatch.setattr("exporter.parity.truth.oracle.in_query_blocks", lambda _: pytest.fail())
    with_contacts = replace(tiny, contacts=True)
    assert needs_whole_scores(with_contacts)
    assert not needs_whole_scores(tiny)
    pack: Pack = [Protein("LAGV" * 70)]
    found = run_eager(with_contacts, {"some": pack}, (2,), "mean", torch.float64)["some"]
    assert found.tensors["contacts"].shape == (280 * 281 // 2, 1)
