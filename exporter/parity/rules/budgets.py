"""What an engine may differ by: one table. Each row has its value, the reason, the measurement."""

from typing import Literal

import msgspec

HALF = ("float16", "bfloat16")
SHALLOW_LAYERS = 12

Quantity = Literal[
    "ratio", "absolute_ratio", "relative_l2", "residue_cosine_p01", "pooled_cosine_min",
    "top1_agreement_confident", "jensen_shannon_mean", "label_agreement", "confidence_correlation",
    "variants_spearman", "perplexity_drift", "step_rounding", "attention_rounding", "head_ratio",
    "head_worst",
]  # fmt: skip

# Judged once, over all packs together; these are fields of ``TaskMetrics``.
OF_TASKS: frozenset[Quantity] = frozenset([
    "top1_agreement_confident", "jensen_shannon_mean", "label_agreement", "confidence_correlation",
    "variants_spearman", "perplexity_drift",
])  # fmt: skip
OVER_ALL_PACKS: frozenset[Quantity] = OF_TASKS | {"absolute_ratio"}


class Budget(msgspec.Struct, frozen=True):
    """One rule.

    Attributes:
        name: as the report shows it.
        quantity: what is measured, on every output of every pack or once over all packs.
        limit: the measured value must not be beyond it.
        sense: on which side of ``limit`` it must be.
        reason: why this number.
    """

    name: str
    quantity: Quantity
    limit: float
    sense: Literal["at most", "at least"]
    reason: str

    def is_met(self, measured: float) -> bool:
        """Whether ``measured`` is within the limit; NaN is not."""
        return measured <= self.limit if self.sense == "at most" else measured >= self.limit

    def margin(self, measured: float) -> float:
        """How many times over its limit ``measured`` is; above 1 it fails.

        For agreements and cosines it is their distance from 1 that counts.
        """
        if self.sense == "at least":
            return (1 - measured) / (1 - self.limit)
        return measured / self.limit


# Two orders of rounding in one dtype differ by less than a factor of two from the truth; this is
# how flash-attention tests itself (tests/test_flash_attn.py). Measured for 8M on 15 packs, worst
# output: 1.39 in float32, 1.18 in float16, 1.03 in bfloat16 (relative L2); for 35M 1.38 in float32.
# The largest absolute error of one pack varies more, 1.78; over all packs it was at most 1.26.
RELATIVE_RULE = (
    Budget(
        "relative L2, as a multiple of eager fair-esm's own",
        "ratio",
        2.0,
        "at most",
        "an engine may round differently from eager PyTorch in its dtype, but not worse than "
        "twice as badly; holds for the whole output and for its worst protein",
    ),
    Budget(
        "worst absolute error, as a multiple of eager fair-esm's own",
        "absolute_ratio",
        2.0,
        "at most",
        "the same for the single worst number of each output over all packs, where a fault of few "
        "positions shows first",
    ),
)

# Measured for 8M and 35M with synthetic weights: rounding 3e-7 to 1.2e-6 (nearly all masks). The
# mildest planted faults: GELU by tanh 1e-4, LayerNorm's eps of 1e-12 7e-6 on ordinary proteins.
FLOAT32_SHALLOW = Budget(
    "relative L2, float32, up to 12 layers",
    "relative_l2",
    2e-6,
    "at most",
    "float32 rounding through 12 layers stays near 1e-6; the mildest fault is 3 times the limit",
)
FLOAT32_ANY_DEPTH = Budget(
    "relative L2, float32, any depth",
    "relative_l2",
    2e-5,
    "at most",
    "rounding grows with depth; a hard stop beside the relative rule",
)

# In every dtype: where its rounding can change the choice, no position counts as confident.
CONFIDENT_CHOICES = Budget(
    "first choice at confident masked positions, agreement",
    "top1_agreement_confident",
    0.995,
    "at least",
    "a confident prediction must not change by rounding",
)

# Measured for 8M in bfloat16, the coarsest: residues 0.99985, pooled 0.99995, agreement 1.
TASK_RULES = (
    Budget(
        "cosine of residues, 1st percentile",
        "residue_cosine_p01",
        0.999,
        "at least",
        "bfloat16 rounding alone leaves 0.9998; never enough alone: a wrong scale keeps it at 1",
    ),
    Budget(
        "cosine of pooled embeddings, worst protein",
        "pooled_cosine_min",
        0.9995,
        "at least",
        "bfloat16 rounding alone leaves 0.99995",
    ),
    CONFIDENT_CHOICES,
)


# Measured with synthetic weights, for 8M on 15 packs with the int8 engine and, in brackets, with
# eager fair-esm in int8: ratio 1.02, of the largest absolute error 1.04; relative L2 0.0315;
# residues 0.99906, pooled 0.99974; divergence 0.00158 (0.00155). Over eleven seeds of packs, each
# protein counted once: labels 0.966 to 0.996, confidences 0.9986 to 0.9992. For 35M on
# three packs, eager alone: 0.031, 0.9989, 0.9997, 0.0045, 1, 0.992.
INT8_RULES = (
    Budget(
        "relative L2, as a multiple of eager fair-esm's own in int8",
        "ratio",
        1.25,
        "at most",
        "eager fair-esm with linears in the same steps is what int8 may do; a fault as large as "
        "three quarters of that rounding passes the limit",
    ),
    RELATIVE_RULE[1],
    Budget(
        "relative L2, int8",
        "relative_l2",
        0.06,
        "at most",
        "a stop for weights that int8 does not suit, whatever eager makes of them",
    ),
    Budget(
        "cosine of residues, 1st percentile, int8",
        "residue_cosine_p01",
        0.998,
        "at least",
        "int8 rounding alone leaves 0.99906",
    ),
    Budget(
        "cosine of pooled embeddings, worst protein, int8",
        "pooled_cosine_min",
        0.999,
        "at least",
        "int8 rounding alone leaves 0.99974",
    ),
    CONFIDENT_CHOICES,
    Budget(
        "Jensen-Shannon divergence of predictions, mean, in nats",
        "jensen_shannon_mean",
        0.01,
        "at most",
        "ln 2 = 0.69 is the most that there can be; int8 rounding alone gives 0.0016 to 0.0045",
    ),
    Budget(
        "same label by a fixed linear classifier",
        "label_agreement",
        0.93,
        "at least",
        "the classifier is random, so many proteins are near its borders; rounding leaves 0.969",
    ),
    Budget(
        "confidence of that classifier, correlation",
        "confidence_correlation",
        0.98,
        "at least",
        "int8 rounding alone leaves 0.992",
    ),
    Budget(
        "scores of substitutions at masked positions, Spearman",
        "variants_spearman",
        0.998,
        "at least",
        "8M to 150M: int8 rounding alone leaves 0.9996, large channels not smoothed 0.994",
    ),
    Budget(
        "pseudo-perplexity, drift of its logarithm as a share of it",
        "perplexity_drift",
        0.03,
        "at most",
        "8M to 150M: int8 rounding alone 0.002 to 0.014; of 2 nats, the limit is 6 % of perplexity",
    ),
)


def budgets_for(dtype: str, num_layers: int) -> tuple[Budget, ...]:
    """The rules for an engine whose linears are in ``dtype``.

    Raises:
        ValueError: no budget was ever measured for this dtype.
    """
    if dtype in HALF:
        return (*RELATIVE_RULE, *TASK_RULES)
    if dtype == "int8":
        return INT8_RULES
    if dtype != "float32":
        raise ValueError(f"no parity budget for {dtype}: it has not been measured")
    ceiling = FLOAT32_SHALLOW if num_layers <= SHALLOW_LAYERS else FLOAT32_ANY_DEPTH
    return (*RELATIVE_RULE, ceiling, *TASK_RULES)
