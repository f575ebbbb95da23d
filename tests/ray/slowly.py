"""Runs ``esm2-run`` with a pause before each pack, so that there is time to end it.

python -m tests.ray.slowly CORES embed ... --ray local
"""

import sys
import time

from runtime import cli
from runtime.ray import cluster
from runtime.ray.crew import Crew

PAUSE_SECONDS = 0.02

if __name__ == "__main__":
    original = Crew.call

    def call(self: Crew, *given: object) -> object:
        time.sleep(PAUSE_SECONDS)
        return original(self, *given)

    Crew.call = call  # type: ignore[method-assign, assignment]
    cluster.usable_cores = lambda: int(sys.argv[1])
    cli.main(sys.argv[2:])
