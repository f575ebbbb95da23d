"""From ``esm2-run embed --ray`` to an engine of actors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.concurrency import Stream
from runtime.device import kind_of
from runtime.errors import EngineError
from runtime.manifest_schema import Manifest
from runtime.ray.cluster import connected, nodes
from runtime.ray.engine import RayEngine
from runtime.ray.plan import Plan, Wanted, plan_for
from runtime.ray.worker import Loading

if TYPE_CHECKING:
    from runtime.readers.scan import Scan

# What an actor loads, but for what the plan says.
LoadingOf = Callable[[Plan], Loading]


@contextmanager
def engine_on_ray(
    address: str, folder: Path, manifest: Manifest, wanted: Wanted, found: "Scan",
    loading_of: LoadingOf, counted_actors: int | None, say: Callable[[str], None],
) -> Iterator[tuple[RayEngine, Plan]]:  # fmt: skip
    """Connects to a cluster and loads the artifact there; both end with the block.

    Args:
        address: of the cluster, see ``connected``.
        folder: the artifact, here.
        manifest: of it.
        wanted: by the caller.
        found: in the inputs.
        loading_of: what each actor loads, by the plan.
        counted_actors: see ``RayEngine``.
        say: receives what is to be told.

    Raises:
        InputError: there is no such cluster, or it has not what was asked for.
        EngineError: the artifact cannot be loaded there.
    """
    with connected(address):
        alive = nodes()
        plan = plan_for(alive, wanted, Stream.of(found), manifest.architecture.embed_dim)
        with RayEngine(folder, manifest, loading_of(plan), plan, counted_actors) as engine:
            if kind_of(engine.spec.device) != plan.device:
                raise EngineError(
                    f"{engine.spec.format} runs on {engine.spec.device}, and each actor would keep "
                    "a GPU idle. Give --device cpu, or build an engine for CUDA"
                )
            card = "a GPU and " if plan.device == "cuda" else ""
            threads = f"{plan.threads} CPU thread{'s' * (plan.threads > 1)}"
            say(
                f"Ray: {engine.size} actor{'s' * (engine.size > 1)} on {len(alive)} "
                f"node{'s' * (len(alive) > 1)}, {card}{threads} each"
            )
            yield engine, plan
