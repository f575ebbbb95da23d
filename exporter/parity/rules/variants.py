"""What a user of variants would notice: another order of substitutions, another perplexity.

Meier et al., "Language models enable zero-shot prediction of the effects of mutations" (2021),
scores a substitution by masked marginals: log p(mutant) - log p(wild type) at the masked position.
"""

import numpy as np
from numpy.typing import NDArray

from runtime.lm_head import AMINO_ACID_IDS, log_softmax

Floats = NDArray[np.floating]

# Proteins are random, so any residue may be what a mask hides: drawn once and for all.
HIDDEN_SEED = 0


def compare_variants(actual: Floats, expected: Floats) -> tuple[float, float] | None:
    """Spearman of all substitutions' scores, and the drift of pseudo-perplexity's logarithm.

    The drift is a share of the logarithm itself, the mean of -log p(wild type): random weights are
    sure of wrong residues, 50 nats and more, where trained ones have 2.

    Args:
        actual: ``[P, 33]`` logits at masked positions.
        expected: the oracle's.

    Returns:
        None where there are no positions, or the oracle scores all substitutions the same.
    """
    columns = AMINO_ACID_IDS
    places = np.arange(len(expected))
    hidden = np.random.default_rng(HIDDEN_SEED).integers(len(columns), size=len(expected))
    others = np.arange(len(columns)) != hidden[:, None]
    got, truth = (log_softmax(logits)[:, columns] for logits in (actual, expected))
    scores, truth_scores = ((x - x[places, hidden][:, None])[others] for x in (got, truth))
    if not len(truth_scores) or np.ptp(truth_scores) == 0:
        return None
    nats, truth_nats = (-float(x[places, hidden].mean()) for x in (got, truth))
    return spearman(scores, truth_scores), abs(nats - truth_nats) / truth_nats


def spearman(one: Floats, other: Floats) -> float:
    """Correlation of the ranks of two lists of numbers, which have no ties."""
    first, second = (np.argsort(np.argsort(values)) for values in (one, other))
    return float(np.corrcoef(first, second)[0, 1])
