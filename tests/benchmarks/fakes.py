"""Contenders that cost nothing: as ``benchmarks.peers.serve`` runs them, with NumPy alone."""

import sys
from pathlib import Path

from benchmarks.contenders import Entrant, starter
from benchmarks.results import Contender
from benchmarks.workload import padded_batches_of

_CODE = """
import sys
sys.path.insert(0, {peers!r})
import numpy as np, serve
class Fake:
    packages = ("numpy",)
    concurrency = int(sys.argv[-1])
    def prepare(self, proteins):
        print("noise on stdout")
        {on_prepare}
        return lambda: proteins
    def finish(self):
        pass
    def rows(self, result, proteins):
        return {rows}
serve.serve(Fake)
"""

WRONG = "np.ones((sum(map(len, proteins)), 48))"


def fake_command(rows: str = WRONG, on_prepare: str = "") -> list[str]:
    """A worker without its last arguments; ``rows`` is what it answers."""
    peers = str(Path("benchmarks/peers").resolve())
    return [sys.executable, "-c", _CODE.format(peers=peers, rows=rows, on_prepare=on_prepare)]


def fake_entrant(name: str, command: list[str]) -> Entrant:
    """A peer that is such a worker."""
    about = Contender(name.title(), "peer", 1e-4)
    return Entrant(name, about, starter(*command), (1,), padded_batches_of, process=name)
