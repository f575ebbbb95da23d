"""The engine of ``esm2-run embed``: here or on a cluster, anew or as a run had it before."""

from collections.abc import Iterator
from contextlib import contextmanager

from runtime import __version__
from runtime.attention import default_attention
from runtime.concurrency import Packing, budget_of, packing_for
from runtime.dataset.records import Resolved
from runtime.device import default_max_tokens, kind_of, least_max_tokens
from runtime.embed_options import EmbedOptions
from runtime.embed_stream import Say
from runtime.engine import Engine, EngineSpec
from runtime.loading import load
from runtime.manifest_schema import Manifest
from runtime.readers.scan import Scan
from runtime.threads import default_threads


@contextmanager
def loaded(
    options: EmbedOptions, manifest: Manifest, found: Scan, before: Resolved | None, say: Say
) -> Iterator[tuple[Engine, Resolved]]:
    """An engine, and what the options came to; ``before`` is that of a run that is gone on with."""
    if options.ray is not None:
        with _loaded_on_ray(options, manifest, found, before, say) as loaded:
            yield loaded
        return
    name, threads = (before.engine, before.threads) if before else (options.engine, options.threads)
    if before:
        packing = Packing(before.concurrency, before.max_tokens)
    else:
        packing = packing_for(
            found, manifest.architecture.embed_dim, options.max_tokens or least_max_tokens("cpu"),
            options.threads, options.concurrency,
        )  # fmt: skip
    with load(
        options.artifact, name, options.device, options.attention, threads, packing.concurrency,
        options.tf32, options.cuda_graphs,
    ) as engine:  # fmt: skip
        budget = packing.max_tokens
        if not before:
            wanted = options.max_tokens or default_max_tokens(engine.spec)
            budget = budget_of(packing, engine.concurrency, engine.spec.device, wanted)
        threads = threads or default_threads()
        yield engine, _resolved(engine.spec, threads, packing.concurrency, budget)


@contextmanager
def _loaded_on_ray(
    options: EmbedOptions, manifest: Manifest, found: Scan, before: Resolved | None, say: Say
) -> Iterator[tuple[Engine, Resolved]]:
    from runtime.ray.plan import Plan, Wanted
    from runtime.ray.running import engine_on_ray
    from runtime.ray.worker import Loading

    assert options.ray is not None
    given = before or options
    wanted = Wanted(
        options.device, options.ray_actors, given.threads, given.concurrency, given.max_tokens
    )
    attention = options.attention or default_attention()  # of this environment, not of the nodes

    def loading_of(plan: Plan) -> Loading:
        return Loading(
            given.engine, plan.device, attention, plan.threads, plan.packing.concurrency,
            options.tf32, options.cuda_graphs,
        )  # fmt: skip

    with engine_on_ray(
        options.ray, options.artifact, manifest, wanted, found, loading_of,
        before.actors if before else None, say,
    ) as (engine, plan):  # fmt: skip
        budget = plan.packing.max_tokens
        if not before:
            of_one = options.max_tokens or engine.max_tokens_of_one
            budget = budget_of(plan.packing, engine.concurrency_of_one, plan.device, of_one)
        yield (
            engine,
            _resolved(engine.spec, plan.threads, plan.packing.concurrency, budget, engine.actors),
        )


def _resolved(
    spec: EngineSpec, threads: int, concurrency: int, budget: int, actors: int | None = None
) -> Resolved:
    return Resolved(
        engine=spec.format,
        device=kind_of(spec.device),
        dtype=spec.dtype,
        attention=spec.attention,
        library=spec.library,
        threads=threads,
        concurrency=concurrency,
        max_tokens=budget,
        esm2_engines=__version__,
        actors=actors,
    )
