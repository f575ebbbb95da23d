"""Whether an engine did right inside: positions, and what its attention received.

Outputs cannot show these: attention with rotary depends on differences of positions alone, and
CPU kernels ignore ``max_seqlen``. So formats read them from the running graph.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.formats.format import Observed
from exporter.parity.answers import Answers
from runtime.pooling import pool


def problems(seen: Observed, answers: Answers, num_layers: int) -> list[str]:
    """What is wrong with it, in sentences; empty if positions restart and every call is right."""
    bounds = answers.cu_seqlens.tolist()
    expected = np.concatenate([np.arange(n) for n in np.diff(bounds)])
    found = []
    if len(seen.positions) != 1:
        found.append(f"position_ids are used {len(seen.positions)} times, expected once")
    elif not np.array_equal(seen.positions[0].reshape(-1), expected):
        found.append(f"position_ids {_differing(seen.positions[0].reshape(-1), expected)}")
    if len(seen.calls) != num_layers:
        found.append(f"attention runs {len(seen.calls)} times, expected {num_layers}")
    for layer, (cu_seqlens, max_seqlen) in enumerate(seen.calls, start=1):
        if cu_seqlens != bounds:
            found.append(f"attention of layer {layer} got other cu_seqlens than the pack's")
            break
        if max_seqlen != answers.max_seqlen:
            found.append(
                f"attention of layer {layer} got max_seqlen {max_seqlen}, "
                f"expected {answers.max_seqlen}"
            )
            break
    for offsets in seen.token_offsets:
        places = token_offset_of(answers.cu_seqlens)
        if not np.array_equal(offsets, places):
            found.append(f"token_offset {_differing(offsets.reshape(-1), places.reshape(-1))}")
    for grid in seen.grids:
        for name, actual, right in zip(
            ("sources", "cells"), grid, grid_of(answers.cu_seqlens), strict=True
        ):
            if not np.array_equal(actual, right):
                found.append(f"{name} {_differing(actual.reshape(-1), right.reshape(-1))}")
    for how, rows, pooled in seen.pooled:
        wanted = pool(rows, answers.cu_seqlens, how)
        if pooled.dtype != wanted.dtype or not np.array_equal(pooled, wanted, equal_nan=True):
            found.append(f"the graph for pooling gives other vectors than runtime.pool: {how!r}")
    return found


def grid_of(cu_seqlens: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """By their definition: the token in each cell of a padded batch, padding taking those that
    follow, ``[N, L]``; and the cell of each token, ``[T]``.
    """
    lengths = np.diff(cu_seqlens)
    columns = np.arange(lengths.max())
    sources = np.minimum(cu_seqlens[:-1, None] + columns, cu_seqlens[-1] - 1)
    return sources, np.flatnonzero(columns < lengths[:, None])


def token_offset_of(cu_seqlens: NDArray[np.int32]) -> NDArray[np.int64]:
    """By its definition: the cells of a padded batch, those with tokens first. ``[N, L]``."""
    lengths = np.diff(cu_seqlens)
    cells = np.arange(len(lengths) * lengths.max()).reshape(len(lengths), -1)
    is_token = np.arange(lengths.max()) < lengths[:, None]
    return np.concatenate([cells[is_token], cells[~is_token]]).reshape(cells.shape)


def _differing(actual: NDArray[Any], expected: NDArray[Any]) -> str:
    if actual.shape != expected.shape:
        return f"have shape {list(actual.shape)}, expected {list(expected.shape)}"
    place = int(np.argmax(actual != expected))
    return f"[{place}] is {actual[place]:g}, expected {expected[place]}"
