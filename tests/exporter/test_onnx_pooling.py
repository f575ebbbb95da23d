"""The graph that pools on a card, by ONNX Runtime on the CPU."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.formats.onnx import pooling
from exporter.formats.onnx.attention import ONNX_DTYPES
from runtime.engines.onnx.on_card import places_of
from runtime.pooling import Pool, pool

DTYPES = "float32", "float16"
WAYS = "mean", "mean-with-eos", "cls"


def session(folder: Path, dtype: str) -> onnxruntime.InferenceSession:
    pooling.write(folder, ONNX_DTYPES[dtype])
    return onnxruntime.InferenceSession(
        folder / pooling.FILE_NAME, providers=["CPUExecutionProvider"]
    )


def pooled(
    session: onnxruntime.InferenceSession, rows: np.ndarray[Any, Any], lengths: list[int], how: Pool
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """By the graph, and by the host."""
    cu_seqlens = np.cumsum([0, *lengths]).astype(np.int32)
    (found,) = session.run(None, {"rows": rows, **places_of(cu_seqlens, how)})
    return found, pool(rows, cu_seqlens, how)


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, onnxruntime.InferenceSession]:
    folder = tmp_path_factory.mktemp("pooling")
    return {dtype: session(folder, dtype) for dtype in DTYPES}


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    how=st.sampled_from(WAYS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_it_gives_what_the_host_gives(
    sessions: dict[str, onnxruntime.InferenceSession],
    lengths: list[int], how: Pool, dtype: str, seed: int,
) -> None:  # fmt: skip
    """Bit by bit; NaN of one protein stays in it, and a protein without residues has NaN."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((sum(lengths), 5)).astype(dtype)
    rows[rng.integers(len(rows))] = np.nan
    found, expected = pooled(sessions[dtype], rows, lengths, how)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "edits",
    [
        {"{{0}}": "{{1}}", "{{-1}}": "{{9223372036854775807}}"},
        {"Div(sums, counts)": "Identity(sums)"},
        {
            "double[1]": "float[1]",
            "<to = 11> (rows)": "<to = 1> (rows)",
            "means = Div(sums": "in_float64 = Cast <to = 11> (sums)\nmeans = Div(in_float64",
        },
    ],
    ids=["another protein's rows", "sums for means", "sums in float32"],
)
def test_another_graph_gives_something_else(tmp_path: Path, edits: dict[str, str]) -> None:
    """What the gate asks of it, on one of its packs."""
    text = pooling._GRAPH
    for right, wrong in edits.items():
        assert right in text
        text = text.replace(right, wrong)
    rows = np.random.default_rng(0).standard_normal((1300, 16)).astype(np.float32)
    with patch.object(pooling, "_GRAPH", text):
        found, expected = pooled(session(tmp_path, "float32"), rows, [1000, 300], "mean")
    assert not np.array_equal(found, expected)
