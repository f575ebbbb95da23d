"""An engine of an artifact as a contender; it answers as ``benchmarks.peers.serve`` does.

python -m benchmarks.engine_worker ENGINE ARTIFACT THREADS CONCURRENCY
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import runtime
from benchmarks.peers.serve import serve

Tokens = list[NDArray[np.int64]]


class PackedEngine:
    """``runtime.load``'s engine on packs.

    Args:
        name: of the engine.
        artifact: its folder.
        threads: of each pack.
        concurrency: packs that run at once, on ``threads`` each.
    """

    def __init__(self, name: str, artifact: Path, threads: int, concurrency: int):
        self._engine = runtime.load(
            artifact,
            name,
            device="cpu",
            threads=threads * concurrency,
            concurrency=concurrency,
        )
        # One where the engine cannot take more: the parent sees it and does without.
        self.concurrency = self._engine.concurrency
        self.packages = ("esm2-engines", self._engine.spec.library.split()[0])

    def prepare(self, proteins: Tokens) -> Callable[[], runtime.Outputs]:
        """From token ids of a pack to something that runs it."""
        batch = runtime.PackedBatch.from_tokens(proteins)
        return lambda: self._engine.run(batch)

    def finish(self) -> None:
        """All is done when a job returns."""

    def rows(self, result: runtime.Outputs, proteins: Tokens) -> NDArray[np.floating]:
        """``[T, E]`` of the last exported layer."""
        return result.representations[max(result.representations)]


if __name__ == "__main__":
    _name, _artifact, _threads, _concurrency = sys.argv[1:]
    serve(lambda: PackedEngine(_name, Path(_artifact), int(_threads), int(_concurrency)))
