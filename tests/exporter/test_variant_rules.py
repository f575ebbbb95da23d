"""Variant scores and pseudo-perplexity, as the gate compares them."""

import numpy as np
import pytest
import torch

from exporter.parity.rules.variants import compare_variants
from runtime.lm_head import AMINO_ACID_IDS

LOGITS = np.random.default_rng(0).standard_normal((40, 33)) * 3


def test_spearman_is_of_substitutions_against_the_hidden_residue() -> None:
    noisy = LOGITS + 0.3 * np.random.default_rng(1).standard_normal(LOGITS.shape)
    spearman, drift = compare_variants(noisy, LOGITS) or (0, 0)
    hidden = np.random.default_rng(0).integers(20, size=40)
    scores, nats = [], []
    for logits in (noisy, LOGITS):
        logs = torch.from_numpy(logits).log_softmax(dim=1).numpy()[:, AMINO_ACID_IDS]
        own = logs[np.arange(40), hidden]
        rows = [np.delete(row - own[i], hidden[i]) for i, row in enumerate(logs)]
        scores.append(np.concatenate(rows).argsort().argsort().astype(float))
        nats.append(-own.mean())
    assert spearman == pytest.approx(np.corrcoef(*scores)[0, 1])
    assert drift == pytest.approx(abs(nats[0] / nats[1] - 1))


def test_another_temperature_keeps_the_order_of_a_position_and_not_the_perplexity() -> None:
    spearman, drift = compare_variants(2 * LOGITS, LOGITS) or (0, 0)
    assert spearman == pytest.approx(1, abs=1e-6)
    assert drift > 0.5


def test_without_positions_there_is_nothing() -> None:
    assert compare_variants(LOGITS[:0], LOGITS[:0]) is None
