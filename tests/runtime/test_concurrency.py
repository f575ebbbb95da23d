"""How many packs ``esm2-run embed`` runs at once, for machines of any size."""

import pytest

from runtime.concurrency import Packing, Stream, budget_of, choose_packing

CORES = (1, 2, 3, 4, 8, 16, 64)
GIB = 1 << 30
E = 320


def chosen(cores: int, stream: Stream, memory: int | None = None, embed_dim: int = E) -> Packing:
    return choose_packing(cores, 4096, embed_dim, stream, memory)


@pytest.mark.parametrize("cores", CORES)
class TestByCores:
    def test_one_protein_alone_gets_all_cores(self, cores: int) -> None:
        assert chosen(cores, Stream(1, 900, 900)).concurrency == 1

    def test_many_even_proteins_get_a_pack_for_each_core(self, cores: int) -> None:
        assert chosen(cores, Stream(200_000, 60_000_000, 1000)) == Packing(cores, 4096)

    def test_a_pipe_gets_a_pack_for_each_core(self, cores: int) -> None:
        assert chosen(cores, Stream()) == Packing(cores, 4096)

    def test_a_few_proteins_are_dealt_to_every_core(self, cores: int) -> None:
        packing = chosen(cores, Stream(10 * cores, 6400 * cores // 2, 320))
        assert packing.max_tokens == 3200
        assert packing.concurrency == cores

    def test_a_protein_that_outweighs_the_others_gets_all_cores(self, cores: int) -> None:
        """Titin beside a small proteome: it would run alone on one core, long after the others."""
        assert chosen(cores, Stream(11, 34_350 + 3000, 34_350)).concurrency <= max(1, cores // 8)


def test_a_heavy_protein_among_many_gets_its_share() -> None:
    """It is an eighth of all work: on 16 cores it ends in time with two of them."""
    work_of_longest = 4000 * (6 * E + 4000)
    num_others = round(7 * work_of_longest / (400 * (6 * E + 400)))
    stream = Stream(num_others + 1, 400 * num_others + 4000, 4000)
    assert 14 <= chosen(16, stream).concurrency <= 15


def test_packs_never_become_tiny() -> None:
    assert chosen(64, Stream(100, 2000, 20)) == Packing(4, 512)
    assert chosen(8, Stream(2, 3000, 1900)).max_tokens == 1900


def test_a_smaller_budget_stays() -> None:
    assert choose_packing(8, 256, E, Stream(9, 900, 100), None).max_tokens == 256


class TestMemory:
    def test_packs_in_flight_fit_half_of_it(self) -> None:
        of_pack = 4096 * 2560 * 24 * 4
        packing = chosen(64, Stream(), memory=16 * GIB, embed_dim=2560)
        assert packing.concurrency == 8
        assert packing.concurrency * of_pack <= 8 * GIB < (packing.concurrency + 1) * of_pack

    def test_a_long_protein_counts_as_the_pack_that_it_is(self) -> None:
        stream = Stream(100_000, 30_000_000, 35_000)
        assert chosen(64, stream, 8 * GIB).concurrency < chosen(64, Stream(), 8 * GIB).concurrency

    def test_one_pack_always_runs(self) -> None:
        assert chosen(64, Stream(), memory=1).concurrency == 1


def test_nothing_to_run() -> None:
    assert chosen(4, Stream(0, 0, 0)).concurrency == 1


@pytest.mark.parametrize(
    ("device", "at_once", "expected"),
    [("cpu", 4, 700), ("cpu", 1, 9000), ("cuda", 2, 9000), ("cuda:1", 2, 9000)],
)
def test_smaller_packs_are_for_engines_that_share_cores(
    device: str, at_once: int, expected: int
) -> None:
    """A card takes two packs at once, and wants them large."""
    assert budget_of(Packing(4, 700), at_once, device, 9000) == expected
