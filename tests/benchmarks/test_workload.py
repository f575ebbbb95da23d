import pytest

from benchmarks.workload import WORKLOADS, packs_of, padded_batches_of


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_same_every_time(name: str) -> None:
    lengths = WORKLOADS[name].draw(5000)
    assert lengths == WORKLOADS[name].draw(5000)
    assert 5000 <= sum(lengths) < 5000 + 4000
    assert min(lengths) >= 3


def test_they_differ_as_their_names_say() -> None:
    drawn = {name: sorted(workload.draw(24_000)) for name, workload in WORKLOADS.items()}
    middle = {name: lengths[len(lengths) // 2] for name, lengths in drawn.items()}
    assert set(drawn["long"]) == {1024}
    assert 35 < middle["short"] < 70 < 200 < middle["mixed"] < 400
    assert drawn["skewed"].count(1000) * 100 == drawn["skewed"].count(30)


@pytest.mark.parametrize("batches_of", [packs_of, padded_batches_of])
@pytest.mark.parametrize("max_tokens", [1, 512, 4096])
def test_every_protein_is_in_one_batch(batches_of, max_tokens: int) -> None:  # type: ignore[no-untyped-def]
    lengths = WORKLOADS["mixed"].draw(8000)
    batches = batches_of(lengths, max_tokens)
    assert sorted(length for batch in batches for length in batch) == sorted(lengths)
    padding = batches_of is padded_batches_of
    for batch in batches:
        cost = max(batch) * len(batch) if padding else sum(batch)
        assert cost <= max_tokens or len(batch) == 1


def test_padded_batches_by_hand() -> None:
    assert padded_batches_of([5, 2, 3, 9], 9) == [[2, 3], [5], [9]]
