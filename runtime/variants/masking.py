"""Masked copies of a protein, and the log-probabilities at what is masked."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from runtime.engine import Engine
from runtime.lm_head import log_softmax, logits_of
from runtime.packing import PackedBatch
from runtime.tokenizer import MASK_ID
from runtime.windows import Values

Tokens = NDArray[np.int64]


def masked_copies(tokens: Tokens, places: Iterable[int]) -> tuple[Tokens, ...]:
    """A copy for each place, with ``<mask>`` there alone.

    Args:
        tokens: ``[L + 2]`` of a protein, BOS and EOS included.
        places: of residues, from 0.

    Returns:
        ``[L + 2]`` each.
    """
    copies = []
    for place in places:
        copy = tokens.copy()
        copy[place + 1] = MASK_ID
        copies.append(copy)
    return tuple(copies)


def of_pack(engine: Engine, batch: PackedBatch) -> list[Values]:
    """Runs a pack of masked copies, or of whole proteins.

    Returns:
        For each protein its log-probabilities, float64: ``[M, 33]`` at its masks, or ``[L, 33]`` of
        all residues where it has none.

    Raises:
        NonFiniteError: the engine returned NaN or Inf.
        EngineError: the engine failed.
    """
    logits = logits_of(engine, batch)
    wanted = batch.input_ids == MASK_ID
    starts, ends = batch.cu_seqlens[:-1], batch.cu_seqlens[1:]
    counts = np.add.reduceat(wanted, starts, dtype=np.int64)
    for start, end in zip(starts[counts == 0], ends[counts == 0], strict=True):
        wanted[start + 1 : end - 1] = True
    bounds = np.cumsum(np.add.reduceat(wanted, starts, dtype=np.int64))[:-1]
    rows = np.split(log_softmax(logits[wanted]), bounds)
    # Copies: a view would keep the pack's for as long as one of them.
    return [each.copy() for each in rows]
