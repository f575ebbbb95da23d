"""Who comes next, what fills a pack, when it is cut."""

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.server.fair_queue import FairQueue

BUDGET = 1000
NOW = 100.0


@dataclass(eq=False)
class Asked:
    client: str
    lengths: list[int]
    kind: str = "vectors"
    tokens: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = [np.zeros(length, np.int64) for length in self.lengths]


def cut_all(queue: FairQueue, idle: int = 1, max_wait: float = 0.0) -> list[list]:
    packs = []
    while found := queue.cut(NOW, max_wait, idle):
        packs += found
    return packs


def test_one_protein_goes_with_the_next_pack_however_many_others_wait():
    queue = FairQueue(BUDGET, 1)
    large = queue.put(Asked("a", [100] * 10_000), NOW)
    queue.cut(NOW, 0, 1)
    small = queue.put(Asked("b", [100]), NOW)
    pack = queue.cut(NOW, 0, 1)[0]
    assert small in {member.waiting for member in pack}
    # The rest of the pack is not left empty.
    assert sum(len(member.tokens) for member in pack) == BUDGET
    assert large in {member.waiting for member in pack}


def test_a_client_with_many_requests_gets_no_more_than_one_with_one():
    queue = FairQueue(BUDGET, 1)
    for _ in range(50):
        queue.put(Asked("many", [100] * 10), NOW)
    queue.put(Asked("one", [100] * 500), NOW)
    of = {"many": 0, "one": 0}
    for _ in range(40):
        for member in queue.cut(NOW, 0, 1)[0]:
            of[member.waiting.job.client] += 1
    assert abs(of["many"] - of["one"]) <= 1


def test_a_client_that_comes_anew_is_owed_nothing_for_the_time_before():
    queue = FairQueue(BUDGET, 1)
    here = queue.put(Asked("here", [100] * 1000), NOW)
    for _ in range(20):
        queue.cut(NOW, 0, 1)
    queue.put(Asked("new", [100] * 1000), NOW)
    before = here.served
    for _ in range(10):
        queue.cut(NOW, 0, 1)
    assert here.served - before == 10 * BUDGET / 2


def test_requests_of_one_client_go_in_turn():
    queue = FairQueue(BUDGET, 1)
    large = queue.put(Asked("a", [100] * 1000), NOW)
    for _ in range(20):
        queue.cut(NOW, 0, 1)
    # New ones are owed nothing for the time before: the old one goes on beside them.
    for _ in range(30):
        queue.put(Asked("a", [100] * 2), NOW)
        pack = queue.cut(NOW, 0, 1)[0]
        assert large in {member.waiting for member in pack}
        assert len({member.waiting for member in pack}) > 1


def test_a_pack_waits_to_be_filled_and_no_longer():
    queue = FairQueue(BUDGET, 1)
    queue.put(Asked("a", [100]), NOW)
    assert queue.cut(NOW + 0.004, 0.005, 1) == []
    queue.put(Asked("b", [100]), NOW + 0.004)
    (pack,) = queue.cut(NOW + 0.006, 0.005, 1)
    assert len(pack) == 2
    queue.put(Asked("a", [100] * 10), NOW)
    assert len(queue.cut(NOW, 0.005, 1)) == 1, "a full pack waits for nothing"
    assert queue.tokens == 0 and queue.oldest() is None


def test_a_request_goes_on_though_its_client_sends_more_than_is_run():
    queue = FairQueue(BUDGET, 1)
    large = queue.put(Asked("a", [100] * 1000), NOW)
    for _ in range(20):
        queue.cut(NOW, 0, 1)
    before = large.served
    for _ in range(30):
        queue.put(Asked("a", [100] * 20), NOW)
        queue.cut(NOW, 0, 1)
    # Its part among up to 31 requests, of 300 proteins.
    assert large.served - before >= 1000


def test_kinds_do_not_share_packs_and_none_waits_for_ever():
    queue = FairQueue(BUDGET, 1)
    queue.put(Asked("a", [100] * 1000, "vectors"), NOW)
    logits = queue.put(Asked("b", [100], "logits"), NOW)
    first, second = queue.cut(NOW, 0, 1)[0], queue.cut(NOW, 0, 1)[0]
    for pack in (first, second):
        assert len({member.waiting.job.kind for member in pack}) == 1
    assert logits in {member.waiting for member in first + second}


def test_little_work_is_split_for_idle_engines():
    queue = FairQueue(BUDGET * 4, 2)
    queue.put(Asked("a", [600, 600]), NOW)
    assert [len(pack) for pack in queue.cut(NOW, 0, 2)] == [1, 1]
    queue.put(Asked("a", [600, 600]), NOW)
    assert [len(pack) for pack in queue.cut(NOW, 0, 1)] == [2]


def test_what_is_cancelled_leaves_its_place():
    queue = FairQueue(BUDGET, 1)
    gone = queue.put(Asked("a", [100] * 100), NOW)
    here = queue.put(Asked("a", [100]), NOW)
    queue.remove(gone)
    queue.remove(gone)
    assert queue.tokens == 100
    ((member,),) = queue.cut(NOW, 0, 1)
    assert member.waiting is here
    assert cut_all(queue) == [] and queue.tokens == 0


LENGTHS = st.lists(st.integers(1, 1500), min_size=1, max_size=40)
REQUESTS = st.lists(
    st.tuples(st.sampled_from("abc"), LENGTHS, st.sampled_from(["vectors", "logits"])), max_size=12
)


@settings(max_examples=150, deadline=None)
@given(REQUESTS, st.integers(1, 3), st.integers(1, 3), st.integers(0, 3))
def test_each_protein_is_cut_once_in_packs_within_the_budget(requests, at_once, idle, cancelled):
    queue = FairQueue(BUDGET, at_once)
    waiting = [queue.put(Asked(*request), NOW) for request in requests]
    early = queue.cut(NOW, 0, idle)
    removed = waiting[:cancelled]
    for each in removed:
        queue.remove(each)
    packs = early + cut_all(queue, idle)
    got = [(id(member.waiting), member.place) for pack in packs for member in pack]
    assert len(got) == len(set(got))
    before = {(id(member.waiting), member.place) for pack in early for member in pack}
    wanted = {
        (id(each), place)
        for each in waiting
        for place in range(len(each.job.tokens))
        if each not in removed
    }
    assert wanted <= set(got) <= wanted | before
    for pack in packs:
        assert len({member.waiting.job.kind for member in pack}) == 1
        assert len(pack) == 1 or sum(len(member.tokens) for member in pack) <= BUDGET
    assert queue.tokens == 0 and queue.oldest() is None


def test_a_long_protein_is_not_passed_over_for_ever():
    queue = FairQueue(BUDGET, 1)
    long = queue.put(Asked("a", [990]), NOW)
    found = []
    for _ in range(3):
        queue.put(Asked("b", [100] * 12), NOW)
        found += queue.cut(NOW, 0, 1)[0]
    assert long in {member.waiting for member in found}
