"""What a user would notice: predictions and classifications, not numbers."""

from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from runtime.tokenizer import MASK_ID

Floats = NDArray[np.floating]

# A position is confident where the oracle's first choice leads the second by this probability.
CONFIDENT_LEAD = 0.1

# Of the linear classifier: a fixed random one, for no other is at hand for every checkpoint.
NUM_CLASSES, CLASSIFIER_SEED = 10, 0


class TaskMetrics(msgspec.Struct, frozen=True):
    """Task-level distances between an engine's answers and the oracle's, over all packs.

    Attributes:
        masked_positions: that were compared.
        confident_positions: of them, where the oracle is sure (see ``CONFIDENT_LEAD``).
        top1_agreement: share of all masked positions with the same first choice; None without any.
        top1_agreement_confident: the same on the confident ones.
        jensen_shannon_mean: of the predicted distributions, in nats (at most ln 2), every token.
        jensen_shannon_max: the largest of them.
        proteins: that were classified.
        label_agreement: share of proteins with the same label by a fixed linear classifier.
        confidence_correlation: Pearson's, of that classifier's confidence; None if it is constant.
    """

    masked_positions: int
    confident_positions: int
    top1_agreement: float | None
    top1_agreement_confident: float | None
    jensen_shannon_mean: float
    jensen_shannon_max: float
    proteins: int
    label_agreement: float
    confidence_correlation: float | None


class Answer(msgspec.Struct, frozen=True):
    """What is compared of one pack: token ids ``[T]``, logits ``[T, 33]``, pooled ``[N, E]``."""

    input_ids: NDArray[np.int64]
    logits: Floats
    pooled: Floats


def compare_tasks(pairs: Iterable[tuple[Answer, Answer]]) -> TaskMetrics:
    """Measures ``(actual, expected)`` answers of the same packs against each other.

    Raises:
        ValueError: no pack.
    """
    pairs = list(pairs)
    if not pairs:
        raise ValueError("no pack: nothing was compared")
    same, confident, divergence = [], [], []
    for actual, expected in pairs:
        got, truth = probabilities(actual.logits), probabilities(expected.logits)
        divergence.append(jensen_shannon(got, truth))
        masked = expected.input_ids == MASK_ID
        same.append(got[masked].argmax(axis=1) == truth[masked].argmax(axis=1))
        second, first = np.sort(truth[masked], axis=1)[:, -2:].T
        confident.append(first - second >= CONFIDENT_LEAD)
    same, confident, divergence = map(np.concatenate, (same, confident, divergence))
    actual_pooled, expected_pooled = (
        np.concatenate([side.pooled for side in answers]) for answers in zip(*pairs, strict=True)
    )
    agreement, correlation = compare_classifications(actual_pooled, expected_pooled)
    return TaskMetrics(
        masked_positions=len(same),
        confident_positions=int(confident.sum()),
        top1_agreement=_mean(same),
        top1_agreement_confident=_mean(same[confident]),
        jensen_shannon_mean=float(divergence.mean()),
        jensen_shannon_max=float(divergence.max()),
        proteins=len(expected_pooled),
        label_agreement=agreement,
        confidence_correlation=correlation,
    )


def compare_classifications(actual: Floats, expected: Floats) -> tuple[float, float | None]:
    """Label agreement and correlation of confidences under the fixed classifier.

    Embeddings ``[N, E]`` are standardised by the mean and deviation of ``expected``, as they were
    for a classifier that was trained on them.

    Raises:
        ValueError: NaN or Inf on either side.
    """
    if not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        raise ValueError("embeddings hold NaN or Inf: they cannot be classified")
    mean, deviation = expected.mean(axis=0), expected.std(axis=0)
    random = np.random.default_rng(CLASSIFIER_SEED)
    weights = random.standard_normal((expected.shape[1], NUM_CLASSES)) / expected.shape[1] ** 0.5
    got, truth = (
        probabilities(((x - mean) / np.where(deviation > 0, deviation, 1)) @ weights)
        for x in (actual.astype(np.float64), expected.astype(np.float64))
    )
    agreement = float((got.argmax(axis=1) == truth.argmax(axis=1)).mean())
    got, truth = got.max(axis=1), truth.max(axis=1)
    if np.ptp(got) == 0 or np.ptp(truth) == 0:
        return agreement, None
    return agreement, float(np.corrcoef(got, truth)[0, 1])


def probabilities(logits: Floats) -> Floats:
    """Softmax over the last axis in float64."""
    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def jensen_shannon(p: Floats, q: Floats) -> Floats:
    """Divergence of each row's distributions, in nats.

    Source: Lin, "Divergence measures based on the Shannon entropy" (1991).
    """
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return np.maximum(divergence, 0)  # rounding leaves -1e-17 where p equals q


def _relative_entropy(p: Floats, q: Floats) -> Floats:
    logarithm = np.log(np.divide(p, q, out=np.ones_like(p), where=p > 0))
    return (p * logarithm).sum(axis=-1)


def _mean(values: NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None
