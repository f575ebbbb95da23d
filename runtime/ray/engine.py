"""An engine that runs elsewhere: each pack goes to an actor that has loaded the artifact."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.engine import Outputs
from runtime.engines.base import LoadedEngine, check_pools
from runtime.manifest_schema import Manifest
from runtime.packing import PackedBatch
from runtime.pooling import Pool
from runtime.ray.artifact import Shipped, put_files
from runtime.ray.crew import IN_STORE, Crew
from runtime.ray.plan import Plan
from runtime.ray.worker import Loading, SentPack


class RayEngine(LoadedEngine):
    """Actors of a Ray cluster as one engine. This process must be connected to the cluster.

    As many threads may call it as there are packs with all actors: ``AsyncInferenceRunner`` reads,
    packs and restores the order here, and each of its threads waits for one pack.

    Args:
        folder: the artifact, here.
        manifest: of it.
        loading: what each actor loads.
        plan: actors, and what each gets.
        counted_actors: by which ``concurrency`` is counted, and so the runner's windows; None
            takes those of the plan. A run that is gone on with counts those of its beginning: its
            packs are then the same, whatever the cluster has now.

    Attributes:
        actors: that ``concurrency`` is counted by.
        size: actors that came at the start.
        max_tokens_of_one: budget of a pack that each of them takes by itself.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, loading: Loading, plan: Plan,
        counted_actors: int | None = None,
    ):  # fmt: skip
        folder = folder.resolve()
        shipped = Shipped.of(folder, manifest)
        resources: dict[str, float] = {"num_cpus": plan.threads}
        if plan.device == "cuda":
            resources["num_gpus"] = 1
        self._crew = Crew(shipped, loading, plan.actors, resources, lambda: put_files(folder))
        self.actors = counted_actors or plan.actors
        self.size = self._crew.size
        described = self._crew.description
        self.concurrency_of_one = described.concurrency
        self.max_tokens_of_one = self._crew.max_tokens
        super().__init__(described.spec, self.actors * (described.concurrency + IN_STORE))

    def unsupported_reasons(self, batch: PackedBatch) -> list[str]:
        """None: the actor that gets a pack says so, in place of its answer."""
        return []

    def run(self, batch: PackedBatch, names: Sequence[str] | None = None) -> Outputs:
        """See ``Engine.run``."""
        self.require_usable()
        tensors = self._crew.call("run", SentPack.of(batch), names)
        # Those of Ray lie in memory that is shared, and cannot be written.
        return Outputs({name: np.array(values) for name, values in tensors.items()})

    def embed_several(
        self, batch: PackedBatch, wanted: Sequence[tuple[int, Pool]]
    ) -> list[NDArray[np.floating]]:
        """See ``Engine.embed_several``.

        Raises:
            UnsupportedError: the engine does not take such a pack.
            EngineError: the engine failed, or actors died under this pack again and again.
        """
        self.require_usable()
        check_pools(wanted)
        return [np.array(rows) for rows in self._crew.call("embed", SentPack.of(batch), wanted)]

    def close(self) -> None:
        """Ends the actors."""
        super().close()
        self._crew.close()
