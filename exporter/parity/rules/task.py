"""What a user would notice: predictions and classifications, not numbers."""

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporter.parity.rules.variants import compare_variants
from runtime.tokenizer import MASK_ID

Floats = NDArray[np.floating]

# A position is confident where the oracle's first choice leads the second by this probability, and
# its logit by so many times what eager fair-esm's logits are off by in the engine's dtype. Two of
# those differ by 1.4 times that, so 5 are 3.5 deviations, and 2.9 where an engine is 1.2 x as bad.
CONFIDENT_LEAD, CONFIDENT_ERRORS = 0.1, 5.0

# Of the linear classifier: a fixed random one, for no other is at hand for every checkpoint.
NUM_CLASSES, CLASSIFIER_SEED = 10, 0

# Of a confidence in float64, a number up to 1: what varies by less is constant.
ROUNDING = 1e-12

OF_LM_HEAD = (
    "top1_agreement_confident", "jensen_shannon_mean", "variants_spearman", "perplexity_drift"
)  # fmt: skip
# Why there is nothing to compare: each lies in the oracle's answers, and each says what to do.
NO_LM_HEAD = "the checkpoint has no LM head, so there are no predictions; embeddings are compared"
NEVER_CONFIDENT = (
    "eager fair-esm in float64 is confident at none of {} masked positions (its first choice never "
    "leads by {}, or by no more than rounding): a weak LM head. Do not rely on this model's "
    "predictions; its logits and embeddings are compared by the other rules"
)
CONSTANT_SCORES = (
    "in float64 every substitution has the same score: an untrained LM head. Do not rely on this "
    "model's predictions; its embeddings are compared by the other rules"
)
CONSTANT_CONFIDENCE = (
    "the classifier is equally sure of every protein in float64; labels and embeddings are "
    "compared by the other rules"
)


class TaskMetrics(msgspec.Struct, frozen=True):
    """Task-level distances between an engine's answers and the oracle's, over all packs.

    Attributes:
        masked_positions: that were compared; none where there is no LM head.
        confident_positions: of them, where the oracle is sure (see ``CONFIDENT_LEAD``).
        top1_agreement: share of all masked positions with the same first choice; None without any.
        top1_agreement_confident: the same on the confident ones.
        jensen_shannon_mean: of the predicted distributions, in nats (at most ln 2), every token;
            None where there is no LM head.
        jensen_shannon_max: the largest of them.
        proteins: that were classified; equal ones, of all packs, once.
        label_agreement: share of proteins with the same label by a fixed linear classifier.
        confidence_correlation: Pearson's, of that classifier's confidence; None if the oracle's is
            constant.
        variants_spearman: of the scores of all substitutions at masked positions; see
            ``rules.variants``.
        perplexity_drift: of the logarithm of their pseudo-perplexity, as a share of it.
        not_compared: of these, those that are None for a reason that lies in the oracle's answers:
            the reason, and what to do.
    """

    masked_positions: int
    confident_positions: int
    top1_agreement: float | None
    top1_agreement_confident: float | None
    jensen_shannon_mean: float | None
    jensen_shannon_max: float | None
    proteins: int
    label_agreement: float
    confidence_correlation: float | None
    variants_spearman: float | None = None
    perplexity_drift: float | None = None
    not_compared: dict[str, str] = {}


class Answer(msgspec.Struct, frozen=True):
    """What is compared of one pack: token ids ``[T]``, logits ``[T, 33]``, pooled ``[N, E]``.

    Logits are None where the checkpoint has no LM head.
    """

    input_ids: NDArray[np.int64]
    logits: Floats | None
    pooled: Floats


def compare_tasks(
    pairs: Iterable[tuple[Answer, Answer]], eager: Iterable[tuple[Answer, Answer]] = ()
) -> TaskMetrics:
    """Measures ``(actual, expected)`` answers of the same packs against each other.

    Args:
        pairs: an engine's answers, and eager fair-esm's in float64.
        eager: the same, of eager fair-esm in the engine's dtype.

    Raises:
        ValueError: no pack.
    """
    pairs = list(pairs)
    if not pairs:
        raise ValueError("no pack: nothing was compared")
    has_logits = all(expected.logits is not None for _, expected in pairs)
    needed = CONFIDENT_ERRORS * logit_error(eager) if has_logits else 0.0
    predictions = [_predictions(*pair, needed) for pair in pairs] if has_logits else []
    same, confident, divergence = (
        (np.concatenate(parts) for parts in zip(*predictions, strict=True))
        if predictions
        else (np.empty(0, bool), np.empty(0, bool), np.empty(0))
    )
    actual_pooled, expected_pooled = (
        np.concatenate([side.pooled for side in answers]) for answers in zip(*pairs, strict=True)
    )
    # A pack of a thousand copies would otherwise decide: the oracle gives them the same bits.
    _, distinct = np.unique(expected_pooled, axis=0, return_index=True)
    agreement, correlation = compare_classifications(
        actual_pooled[distinct], expected_pooled[distinct]
    )
    variants = _compare_variants(pairs) if has_logits else None
    silent = {}
    if not has_logits:
        silent = dict.fromkeys(OF_LM_HEAD, NO_LM_HEAD)
    elif len(same) and not confident.any():
        silent["top1_agreement_confident"] = NEVER_CONFIDENT.format(len(same), CONFIDENT_LEAD)
    if has_logits and len(same) and variants is None:
        silent |= dict.fromkeys(("variants_spearman", "perplexity_drift"), CONSTANT_SCORES)
    if correlation is None:
        silent["confidence_correlation"] = CONSTANT_CONFIDENCE
    return TaskMetrics(
        masked_positions=len(same),
        confident_positions=int(confident.sum()),
        top1_agreement=_mean(same),
        top1_agreement_confident=_mean(same[confident]),
        jensen_shannon_mean=float(divergence.mean()) if len(divergence) else None,
        jensen_shannon_max=float(divergence.max()) if len(divergence) else None,
        proteins=len(distinct),
        label_agreement=agreement,
        confidence_correlation=correlation,
        variants_spearman=variants and variants[0],
        perplexity_drift=variants and variants[1],
        not_compared=silent,
    )


def logit_error(pairs: Iterable[tuple[Answer, Answer]]) -> float:
    """Root mean square of what logits at masked positions are off by; 0 without any."""
    errors = [
        (actual.logits.astype(np.float64) - expected.logits)[expected.input_ids == MASK_ID].ravel()
        for actual, expected in pairs
        if actual.logits is not None and expected.logits is not None
    ]
    squares = np.concatenate(errors) ** 2 if errors else np.empty(0)
    return float(np.sqrt(squares.mean())) if len(squares) else 0.0


def _compare_variants(pairs: Sequence[tuple[Answer, Answer]]) -> tuple[float, float] | None:
    """At all masked positions; see ``compare_variants``."""
    masked = [expected.input_ids == MASK_ID for _, expected in pairs]
    got, truth = (
        np.concatenate([
            answer.logits[rows]
            for answer, rows in zip(answers, masked, strict=True)
            if answer.logits is not None
        ])
        for answers in zip(*pairs, strict=True)
    )  # fmt: skip
    return compare_variants(got, truth)


def _predictions(
    actual: Answer, expected: Answer, needed: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Floats]:
    """Same first choice and confident, of each masked position; divergence of each token.

    Confident where the first logit leads by ``needed`` too.
    """
    if actual.logits is None or expected.logits is None:
        raise ValueError("logits on one side alone: they cannot be compared")
    got, truth = probabilities(actual.logits), probabilities(expected.logits)
    masked = expected.input_ids == MASK_ID
    second, first = np.sort(truth[masked], axis=1)[:, -2:].T
    second_logit, first_logit = np.sort(expected.logits[masked], axis=1)[:, -2:].T
    return (
        got[masked].argmax(axis=1) == truth[masked].argmax(axis=1),
        (first - second >= CONFIDENT_LEAD) & (first_logit - second_logit >= needed),
        jensen_shannon(got, truth),
    )


def compare_classifications(actual: Floats, expected: Floats) -> tuple[float, float | None]:
    """Label agreement and correlation of confidences under the fixed classifier.

    The correlation is None where the confidence for ``expected`` is constant.

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
    if np.ptp(truth) <= ROUNDING:
        return agreement, None
    if np.ptp(got) == 0:
        return agreement, 0.0  # the oracle's confidence varies, so a constant is a fault
    return agreement, float(np.corrcoef(got, truth)[0, 1])


def probabilities(logits: Floats) -> Floats:
    """Softmax over the last axis in float64."""
    wide = logits.astype(np.float64)
    exponentials: Floats = np.exp(wide - wide.max(axis=-1, keepdims=True))
    total: Floats = exponentials.sum(axis=-1, keepdims=True)
    return exponentials / total


def jensen_shannon(p: Floats, q: Floats) -> Floats:
    """Divergence of each row's distributions, in nats.

    Source: Lin, "Divergence measures based on the Shannon entropy" (1991).
    """
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return np.maximum(divergence, 0)  # rounding leaves -1e-17 where p equals q


def _relative_entropy(p: Floats, q: Floats) -> Floats:
    logarithm = np.log(np.divide(p, q, out=np.ones_like(p), where=p > 0))
    entropy: Floats = (p * logarithm).sum(axis=-1)
    return entropy


def _mean(values: NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None
