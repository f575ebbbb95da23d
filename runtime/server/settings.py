"""What a server may take and hold."""

from dataclasses import dataclass
from pathlib import Path

from runtime.attention import Attention

MB = 1 << 20


@dataclass(frozen=True)
class EngineChoice:
    """Which engine serves; see ``runtime.load``.

    Attributes:
        artifact: the folder, as it was given: what a link points to is asked again at each reload.
        engine, device, attention, threads: as there.
        concurrency: packs at once; None takes as many as cores, where an engine can share them.
        max_tokens: budget of a pack; None takes the device's.
    """

    artifact: Path
    engine: str = "auto"
    device: str = "auto"
    attention: Attention | None = None
    threads: int | None = None
    concurrency: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Limits:
    """What is refused, and when.

    Attributes:
        max_wait: seconds that a pack waits to be filled, from its oldest protein on.
        max_queue_tokens: tokens that are accepted and not yet run.
        max_client_batch_size: proteins, or variants, of a request.
        max_length: residues of a protein.
        max_body_bytes: of a request.
        max_answer_bytes: numbers of an answer; all answers at once take ``ANSWERS`` times that.
        timeout: seconds from a request's arrival to its answer's first byte.
        drain_timeout: seconds that a server that is told to end waits for what it has accepted.
        token: that requests must bear; None lets everybody.
    """

    max_wait: float = 0.005
    max_queue_tokens: int = 2_000_000
    max_client_batch_size: int = 10_000
    max_length: int = 4_096
    max_body_bytes: int = 32 * MB
    max_answer_bytes: int = 256 * MB
    timeout: float = 300.0
    drain_timeout: float = 60.0
    token: str | None = None


# Answers of the largest size that may be held at once.
ANSWERS = 4
