"""What a person on call looks at, for Prometheus.

Names are those of Text Embeddings Inference (``te_``) where it has them; ``esm2_`` is our own.
"""

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

# A request takes from a millisecond, on a card, to minutes, of ten thousand proteins.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
TOKENS = tuple(2**n for n in range(4, 18))

# A time of birth for each counter: nobody asks, and it is as many series again.
disable_created_metrics()  # type: ignore[no-untyped-call]

__all__ = ["CONTENT_TYPE", "Metrics"]


class Metrics:
    """Counts and times of one server.

    Attributes:
        tokens_run, seconds_run: in packs, and that engines took for them.
    """

    def __init__(self) -> None:
        self.tokens_run = 0
        self.seconds_run = 0.0
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "te_request_count", "Requests, of each kind and outcome (the status).",
            ["method", "status"], registry=registry,
        )  # fmt: skip
        self.failures = Counter(
            "te_request_failure", "Requests without an answer, by their error_type.", ["err"],
            registry=registry,
        )  # fmt: skip
        self.duration = Histogram(
            "te_request_duration", "Seconds from a request's head to its answer's end.", ["method"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.tokenization = _seconds(
            "te_request_tokenization_duration", "Seconds to read and tokenize a request.", registry
        )
        self.waited = _seconds(
            "te_request_queue_duration",
            "Seconds until the last protein of a request was given to the engine.", registry,
        )  # fmt: skip
        self.computed = _seconds(
            "te_request_inference_duration",
            "Seconds that engines took for packs with a part of a request.", registry,
        )  # fmt: skip
        self.tokens_of_request = Histogram(
            "te_request_input_length", "Tokens of a request.", buckets=TOKENS, registry=registry
        )
        self.pack_tokens = Histogram(
            "te_batch_next_tokens", "Tokens of a pack.", buckets=TOKENS, registry=registry
        )
        self.pack_size = Histogram(
            "te_batch_next_size", "Proteins of a pack.", buckets=TOKENS, registry=registry
        )
        self.queue_size = Gauge(
            "te_queue_size", "Requests accepted, not answered.", registry=registry
        )
        self.fill = Histogram(
            "esm2_pack_fill_ratio", "Tokens of a pack over its budget.", buckets=SHARES,
            registry=registry,
        )  # fmt: skip
        self.engine_seconds = _seconds(
            "esm2_engine_duration_seconds", "Seconds of a pack.", registry
        )
        self.tokens = Counter("esm2_tokens", "Tokens that were run.", registry=registry)
        self.proteins = Counter("esm2_proteins", "Sequences that were run.", registry=registry)
        self.queue_tokens = Gauge(
            "esm2_queue_tokens", "Tokens that wait for the engine.", registry=registry
        )
        self.queue_limit = Gauge(
            "esm2_queue_tokens_limit", "Beyond which requests get 429.", registry=registry
        )
        self.oldest = Gauge(
            "esm2_queue_oldest_seconds", "Since the request came that waits longest.",
            registry=registry,
        )  # fmt: skip
        self.held_bytes = Gauge(
            "esm2_answers_bytes", "Numbers of answers that are not sent yet.", registry=registry
        )
        self.ready = Gauge("esm2_ready", "1 where requests are taken.", registry=registry)
        self.reloads = Counter(
            "esm2_reloads", "Artifacts that were asked to be loaded anew.", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self.engine = Info("esm2_engine", "What serves.", registry=registry)

    def of_pack(self, tokens: int, proteins: int, budget: int, seconds: float) -> None:
        """A pack that was run."""
        self.pack_tokens.observe(tokens)
        self.pack_size.observe(proteins)
        self.fill.observe(min(1.0, tokens / budget))
        self.engine_seconds.observe(seconds)
        self.tokens_run += tokens
        self.seconds_run += seconds
        self.tokens.inc(tokens)
        self.proteins.inc(proteins)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return bytes(generate_latest(self.registry))


def _seconds(name: str, what: str, registry: Any) -> Histogram:
    return Histogram(name, what, buckets=SECONDS, registry=registry)
