"""Cuts a stream of embeddings into parts, at rows where a run can begin again."""

import time
from collections import deque
from collections.abc import Iterable, Iterator

from runtime.runner import Embedding


class Cutter:
    """Gives the embeddings of one part after the other.

    A part ends behind a window of the runner, once it holds so many bytes or took so long: who
    begins there gets the same packs, and so the same bits, as who came through.

    Args:
        embeddings: of ``AsyncInferenceRunner.run``.
        window_ends: of that runner.
        part_bytes: of vectors; a part may hold a window more.
        part_seconds: what a kill costs at most, and a window.
    """

    def __init__(
        self,
        embeddings: Iterable[Embedding],
        window_ends: deque[int],
        part_bytes: int,
        part_seconds: float,
    ):
        self.end: int | None = None
        """Row behind the part that was given; None where the input held no record."""
        self.is_done = False
        self.tokens = 0
        self._embeddings = iter(embeddings)
        self._window_ends = window_ends
        self._part_bytes = part_bytes
        self._part_seconds = part_seconds
        self._next: Embedding | None = None

    def part(self) -> Iterator[Embedding]:
        """Those of the next part; afterwards ``end``, ``tokens`` and ``is_done`` are its own."""
        held = 0
        self.tokens = 0
        begun = time.monotonic()
        while (embedding := self._next or next(self._embeddings, None)) is not None:
            self._next = None
            if self._ends_before(embedding) and (
                held >= self._part_bytes or time.monotonic() - begun >= self._part_seconds
            ):
                self._next = embedding
                return
            held += embedding.values.nbytes
            self.tokens += embedding.num_tokens
            yield embedding
        self.is_done = True
        if self._window_ends:
            self.end = self._window_ends[-1]

    def _ends_before(self, embedding: Embedding) -> bool:
        """Whether a window ended since the last embedding."""
        ended = False
        while self._window_ends and self._window_ends[0] <= embedding.row:
            self.end = self._window_ends.popleft()
            ended = True
        return ended
