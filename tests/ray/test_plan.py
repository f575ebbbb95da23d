"""How many actors, with what."""

import pytest

from runtime.concurrency import Packing, Stream
from runtime.errors import InputError
from runtime.ray.plan import Node, Plan, Wanted, plan_for

GB = 1 << 30
TWO = [Node(0, 0), Node(16, 0, 64 * GB), Node(8, 0, 32 * GB)]
CARDS = [Node(8, 0), Node(32, 4), Node(32, 4)]
MANY = Stream(1_000_000, 300_000_000, 2000)


@pytest.mark.parametrize(
    ("nodes", "wanted", "expected"),
    [
        # One a node, of the smallest node's size; the head has no CPUs for actors.
        (TWO, Wanted(), ("cpu", 3, 8)),
        (TWO, Wanted(threads=4), ("cpu", 6, 4)),
        (TWO, Wanted(actors=6), ("cpu", 6, 4)),
        (TWO, Wanted(actors=2), ("cpu", 2, 8)),
        (TWO, Wanted(actors=2, threads=3), ("cpu", 2, 3)),
        (CARDS, Wanted(), ("cuda", 8, 1)),
        (CARDS, Wanted(actors=2, threads=3), ("cuda", 2, 3)),
        (CARDS, Wanted(device="cpu"), ("cpu", 9, 8)),
    ],
)
def test_actors_and_threads(nodes: list[Node], wanted: Wanted, expected: object) -> None:
    plan = plan_for(nodes, wanted, MANY, 320)
    assert (plan.device, plan.actors, plan.threads) == expected


def test_packs_of_an_actor() -> None:
    assert plan_for(TWO, Wanted(), MANY, 320).packing == Packing(8, 4096)
    assert plan_for(TWO, Wanted(concurrency=2), MANY, 320).packing == Packing(2, 4096)
    assert plan_for(CARDS, Wanted(), MANY, 320) == Plan("cuda", 8, 1, Packing(1, 16_384))
    # A third of the work for each of three, in packs that let eight threads share it.
    few = Stream(300, 90_000, 400)
    assert plan_for(TWO, Wanted(), few, 320).packing == Packing(7, 3750)
    # Half of 4 GB for each of two actors holds one pack of E = 5120.
    small = [Node(8, 0, 8 * GB)]
    assert plan_for(small, Wanted(threads=4), MANY, 5120).packing.concurrency == 1


@pytest.mark.parametrize(
    ("nodes", "wanted", "message"),
    [
        (TWO, Wanted(threads=17), "has 17 CPUs for an actor, the largest has 16"),
        ([Node(0, 0)], Wanted(), "no node of the Ray cluster has 1 CPU"),
        (TWO, Wanted(device="cuda"), "no node of the Ray cluster has a GPU"),
        (CARDS, Wanted(device="cuda:1"), "Ray chooses the cards"),
    ],
)
def test_what_the_cluster_has_not(nodes: list[Node], wanted: Wanted, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_for(nodes, wanted, MANY, 320)
