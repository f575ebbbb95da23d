"""What ``make bench`` and ``make bench-full`` measure: one table."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Tokens in a batch that the search tries, padding included for those who pad.
SIZES = (256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class ModelPlan:
    """What is measured of one artifact.

    Attributes:
        tokens: of each workload, by its name.
        search_tokens: of the workload on which a batch size is tried.
        sizes: batch sizes that are tried.
        search_s: after so many seconds of one contender's search on one workload, with one number
            of batches at once, no further size is begun.
        rounds: at least and at most; more than the least while the run's time lasts.
        latency_runs: of one protein, by each contender in each round.
        scaling: measure with one thread too.
        growth: tokens of each stream.
        time_share: of the run's time that is left when the artifact's turn comes.
    """

    tokens: Mapping[str, int]
    search_tokens: int
    sizes: tuple[int, ...] = SIZES
    search_s: float = 120.0
    rounds: tuple[int, int] = (3, 8)
    latency_runs: int = 10
    scaling: bool = True
    growth: tuple[int, ...] = ()
    time_share: float = 1.0


@dataclass(frozen=True)
class Plan:
    """A run: how long it may take, and what it measures of the artifacts, in their order."""

    minutes: float
    models: tuple[ModelPlan, ...] = field(default_factory=tuple)


_ALL = ("mixed", "short", "long", "skewed")

PLANS = {
    "bench": Plan(
        minutes=8.5,
        models=(
            ModelPlan(
                {"mixed": 4_096, "short": 2_048},
                search_tokens=2_048,
                sizes=(512, 1024, 2048),
                search_s=4.0,
                latency_runs=5,
                scaling=False,
                growth=(1_000, 10_000, 100_000),
                time_share=0.6,
            ),
            ModelPlan(
                {"mixed": 2_048},
                search_tokens=2_048,
                sizes=(512, 1024, 2048),
                search_s=8.0,
                latency_runs=4,
                scaling=False,
            ),
        ),
    ),
    "full": Plan(
        minutes=120.0,
        models=(
            ModelPlan(
                dict.fromkeys(_ALL, 24_576),
                search_tokens=8_192,
                rounds=(5, 9),
                growth=(1_000, 10_000, 100_000, 1_000_000),
                time_share=0.35,
            ),
            ModelPlan(
                dict.fromkeys(_ALL, 16_384), search_tokens=6_144, rounds=(5, 9), time_share=0.5
            ),
            ModelPlan(
                dict.fromkeys(_ALL, 8_192),
                search_tokens=4_096,
                sizes=(512, 1024, 2048, 4096),
                rounds=(3, 5),
            ),
        ),
    ),
}
