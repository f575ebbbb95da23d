"""What the ``make bench`` targets and, of each model, ``make gpu-check`` measure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.limit import FLOPS_PER_EXPONENTIAL


@dataclass(frozen=True)
class ModelPlan:
    """What is measured of one artifact.

    Attributes:
        tokens: of each workload, by its name.
        search_tokens: of the workload on which a batch size is tried.
        sizes: batch sizes that are tried, in tokens, padding included for those who pad.
        search_s: after so many seconds of one contender's search on one workload, with one number
            of batches at once, no further size is begun.
        rounds: at least and at most; more than the least while the run's time lasts.
        latency_runs: of one protein, by each contender in each round.
        scaling: measure with one thread too.
        growth: tokens of each stream.
        time_share: of the run's time that is left when the artifact's turn comes.
        warm: all runs once before it is timed first: a card has to find memory for each size.
        per_exponential: FLOPs of one, for the limit; a card has units of their own for them.
    """

    tokens: Mapping[str, int]
    search_tokens: int
    sizes: tuple[int, ...]
    search_s: float
    rounds: tuple[int, int] = (3, 8)
    latency_runs: int = 10
    scaling: bool = True
    growth: tuple[int, ...] = ()
    time_share: float = 1.0
    warm: bool = False
    per_exponential: int = FLOPS_PER_EXPONENTIAL


@dataclass(frozen=True)
class Plan:
    """A run: how long it may take, and what it measures of the artifacts, in their order."""

    minutes: float
    models: tuple[ModelPlan, ...] = field(default_factory=tuple)


PLANS = {
    "bench": Plan(
        minutes=6.5,
        models=(
            ModelPlan(
                {"mixed": 4_096, "short": 2_048},
                search_tokens=2_048,
                sizes=(512, 1024, 2048),
                search_s=3.0,
                latency_runs=5,
                scaling=False,
                growth=(1_000, 10_000, 100_000),
                time_share=0.6,
            ),
            ModelPlan(
                {"mixed": 2_048},
                search_tokens=1_024,
                sizes=(512, 1024),
                search_s=4.0,
                rounds=(2, 8),
                latency_runs=3,
                scaling=False,
            ),
        ),
    ),
    "machine": Plan(
        minutes=3.0,
        models=(
            ModelPlan(
                {"mixed": 4_096},
                search_tokens=2_048,
                sizes=(512, 1024, 2048),
                search_s=3.0,
                latency_runs=2,
                scaling=False,
                time_share=0.4,
            ),
            ModelPlan(
                {"mixed": 2_048},
                search_tokens=1_024,
                sizes=(512, 1024),
                search_s=3.0,
                latency_runs=2,
                scaling=False,
            ),
        ),
    ),
    "full": Plan(
        minutes=30.0,
        models=(
            ModelPlan(
                dict.fromkeys(("mixed", "short", "long", "skewed"), 6_144),
                search_tokens=2_048,
                sizes=(512, 1024, 2048),
                search_s=6.0,
                growth=(1_000, 10_000, 100_000, 1_000_000),
                time_share=0.45,
            ),
            ModelPlan(
                {"mixed": 4_096},
                search_tokens=2_048,
                sizes=(512, 1024, 2048),
                search_s=6.0,
                scaling=False,
                time_share=0.45,
            ),
            ModelPlan(
                {"mixed": 2_048},
                search_tokens=1_024,
                sizes=(512, 1024),
                search_s=6.0,
                latency_runs=3,
                scaling=False,
            ),
        ),
    ),
}


def on_a_card(sizes: tuple[int, ...], search_s: float, most_rounds: int) -> ModelPlan:
    """Of one model, packs of ``sizes``; its time is that of the check."""
    largest = max(sizes)
    return ModelPlan(
        # Two of the largest packs, so that a pack's edges count as they do in a stream.
        {"mixed": 2 * largest},
        search_tokens=largest,
        sizes=tuple(sorted(sizes)),
        search_s=search_s,
        rounds=(1, most_rounds),
        warm=True,
        per_exponential=0,
    )
