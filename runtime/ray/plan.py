"""How many actors, with what: by the nodes, the work at hand, and what the caller asks for."""

import math
from dataclasses import dataclass, replace

from runtime.concurrency import Packing, Stream, choose_packing
from runtime.device import kind_of, least_max_tokens
from runtime.errors import InputError

# Of an actor that has a card; its engine computes there.
THREADS_BESIDE_A_CARD = 1


@dataclass(frozen=True)
class Node:
    """What a node of the cluster has; its memory in bytes, None where that is not known."""

    cpus: int
    gpus: int
    memory: int | None = None


@dataclass(frozen=True)
class Wanted:
    """What was asked for; None chooses.

    Attributes:
        device: ``"auto"`` takes the cards where the cluster has any.
        actors: in all.
        threads: CPU threads of each.
        concurrency: packs at once of each, on CPUs.
        max_tokens: budget of a pack.
    """

    device: str = "auto"
    actors: int | None = None
    threads: int | None = None
    concurrency: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Plan:
    """What each actor gets, and how many there are.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``; then each actor has a card.
        actors: in all.
        threads: of each, and so many CPUs.
        packing: of each: packs at once, and the budget of one.
    """

    device: str
    actors: int
    threads: int
    packing: Packing


def check_device_of_actors(device: str) -> None:
    """Raises InputError for the number of a card: each actor has its own, as the first."""
    if ":" in device:
        raise InputError(
            f"device {device} with Ray: Ray chooses the cards. Give device cuda, or limit it with "
            "CUDA_VISIBLE_DEVICES"
        )


def plan_for(nodes: list[Node], wanted: Wanted, stream: Stream, embed_dim: int) -> Plan:
    """One actor a card; without cards, one a node, or as many as have ``wanted.threads`` each.

    Args:
        nodes: of the cluster.
        wanted: by the caller.
        stream: all of the work.
        embed_dim: E.

    Raises:
        InputError: the cluster has not what was asked for.
    """
    check_device_of_actors(wanted.device)
    gpus = sum(node.gpus for node in nodes)
    device = wanted.device
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if kind_of(device) == "cuda":
        if not gpus:
            raise InputError("--device cuda: no node of the Ray cluster has a GPU")
        budget = wanted.max_tokens or least_max_tokens(device)
        threads = wanted.threads or THREADS_BESIDE_A_CARD
        return Plan(device, wanted.actors or gpus, threads, Packing(1, budget))
    threads, actors = _of_cpus([node.cpus for node in nodes if node.cpus], wanted)
    budget = wanted.max_tokens or least_max_tokens(device)
    if wanted.concurrency is not None:
        return Plan(device, actors, threads, Packing(min(wanted.concurrency, threads), budget))
    memory = _memory_of_one([node for node in nodes if node.cpus], threads)
    packing = choose_packing(threads, budget, embed_dim, _share(stream, actors), memory)
    return Plan(device, actors, threads, packing)


def _of_cpus(cpus: list[int], wanted: Wanted) -> tuple[int, int]:
    """Threads of an actor, and actors."""
    most = max(cpus, default=0)
    threads = wanted.threads
    if threads is None and wanted.actors is None:
        threads = min(cpus, default=0)
    elif threads is None:
        # As many threads as let all of them have a place.
        fitting = [t for t in range(1, most + 1) if _places(cpus, t) >= (wanted.actors or 1)]
        threads = max(fitting, default=1)
    actors = wanted.actors or (_places(cpus, threads) if threads else 0)
    if not actors or _places(cpus, threads) < 1:
        raise InputError(
            f"no node of the Ray cluster has {threads or 1} CPUs for an actor, the largest has "
            f"{most}. Give fewer --threads"
        )
    return threads, actors


def _places(cpus: list[int], threads: int) -> int:
    return sum(of_node // threads for of_node in cpus)


def _share(stream: Stream, actors: int) -> Stream:
    """An actor's part of the work."""
    if stream.num_proteins is None or stream.num_tokens is None:
        return stream
    return replace(
        stream,
        num_proteins=math.ceil(stream.num_proteins / actors),
        num_tokens=math.ceil(stream.num_tokens / actors),
    )


def _memory_of_one(nodes: list[Node], threads: int) -> int | None:
    """The least that an actor has on any node."""
    found = [node.memory // max(1, node.cpus // threads) for node in nodes if node.memory]
    return min(found, default=None)
