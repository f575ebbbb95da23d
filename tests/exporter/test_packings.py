"""200 seeded random packings of proteins from 1 to 2000 residues, with masks and rare residues.

Of two layers: what packing can do wrong, it does there.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import runtime
from exporter.model.reference import WeightsSource, load_reference
from exporter.parity.answers import Answers
from exporter.parity.gate import judge
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.packs import (
    Pack,
    Protein,
    _drawn,
    as_batch,
    longest_pack,
    protein,
    rare,
)
from runtime import manifest as manifests
from runtime.manifest_schema import Architecture

pytestmark = pytest.mark.slow

COUNT = 48


def drawn() -> list[Protein]:
    """Lengths spread evenly on a logarithmic scale; a third has masks, a third rare residues."""
    random = np.random.default_rng(200)
    lengths = np.exp(np.linspace(0, np.log(2000), COUNT)).round().astype(int)
    kinds = (protein, rare, lambda random, length: protein(random, length, masked=0.3))
    return [kinds[i % 3](random, int(length)) for i, length in enumerate(lengths)]


PROTEINS = drawn()
MASKED = [i for i, p in enumerate(PROTEINS) if "<mask>" in p.sequence]

# One with masks in every pack, or there would be no prediction to compare.
packings = st.tuples(
    st.lists(st.integers(0, COUNT - 1), max_size=3), st.sampled_from(MASKED), st.integers(0, 3)
).map(lambda drawn: [*drawn[0][: drawn[2]], drawn[1], *drawn[0][drawn[2] :]])


@pytest.fixture(scope="module")
def alone(
    tiny_checkpoint: Path, tiny_artifact: Path, cache: Cache
) -> tuple[dict[str, Answers], dict[str, Answers]]:
    """Each protein's answers in float64 and in float32: a protein alone equals itself in a pack."""
    reference = load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))
    layers = manifests.read(tiny_artifact, check_files=False).layers
    packs = {str(i): [PROTEINS[i]] for i in range(COUNT)}
    truth, eager = (
        run_eager(reference, packs, layers, "mean", dtype, cache)
        for dtype in (torch.float64, torch.float32)
    )
    return truth, eager


@pytest.fixture(scope="module")
def engines(tiny_artifact: Path) -> Iterator[list[runtime.Engine]]:
    with (
        runtime.load(tiny_artifact, "onnx", check_files=False) as one,
        runtime.load(tiny_artifact, "torchscript", check_files=False) as other,
    ):
        yield [one, other]


def test_any_packing_passes(
    tiny_artifact: Path,
    engines: list[runtime.Engine],
    alone: tuple[dict[str, Answers], dict[str, Answers]],
) -> None:
    seen: list[tuple[int, ...]] = []

    # A few more than 200, because some come twice.
    @settings(max_examples=230, derandomize=True, deadline=None, database=None)
    @given(packing=packings)
    def draw(packing: list[int]) -> None:
        seen.append(tuple(packing))

    draw()
    drawn = list(dict.fromkeys(seen))[:200]
    assert len(drawn) == 200
    packs: dict[str, Pack] = {str(packing): [PROTEINS[i] for i in packing] for packing in drawn}
    truth, eager = (Together(answers, packs, drawn) for answers in alone)
    manifest = manifests.read(tiny_artifact, check_files=False)
    for engine in engines:
        # At once, as the gate judges its packs: two of its rules are about all of them together.
        verdict = judge(engine, tiny_artifact, manifest, packs=packs, oracle=truth, eager=eager)
        assert verdict.status == "passed", verdict.reason
        assert {row.pack for row in verdict.rows} == packs.keys()


class Together(Mapping[str, Answers]):
    """Answers of packs from those of their proteins, made when asked for: all are gigabytes."""

    def __init__(
        self, alone: dict[str, Answers], names: Iterable[str], packings: Iterable[Sequence[int]]
    ):
        self._alone = alone
        self._packings = dict(zip(names, packings, strict=True))

    def __getitem__(self, name: str) -> Answers:
        return together(self._alone, self._packings[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._packings)

    def __len__(self) -> int:
        return len(self._packings)


def together(alone: dict[str, Answers], packing: Sequence[int]) -> Answers:
    """The answers of a pack from those of its proteins."""
    members = [alone[str(i)] for i in packing]
    lengths = [len(member.input_ids) for member in members]
    return Answers(
        input_ids=np.concatenate([member.input_ids for member in members]),
        cu_seqlens=np.cumsum([0, *lengths]).astype(np.int32),
        tensors={
            name: np.concatenate([member.tensors[name] for member in members])
            for name in members[0].tensors
        },
    )


def test_what_is_drawn_ends_at_or_beside_a_power_of_two() -> None:
    for seed in range(200):
        pack = _drawn(np.random.default_rng(seed))
        tokens = as_batch(pack).num_tokens
        assert min(abs(tokens - 2**k) for k in range(7, 12)) <= 1
        assert min(len(protein.sequence) for protein in pack) >= 1


def test_longer_proteins_than_memory_are_refused() -> None:
    small = Architecture("8M", 6, 320, 20, 16, 33, True)
    large = Architecture("3B", 36, 2560, 40, 64, 33, True)
    pack = longest_pack(35_000, small, 24 << 30)
    assert max(len(protein.sequence) for protein in pack) == 34_998
    said = "takes 18.6 GB for 35,000 tokens, .* at most --longest 16131, or a larger machine"
    with pytest.raises(runtime.InputError, match=said):
        longest_pack(35_000, large, 8 << 30)
    with pytest.raises(runtime.InputError, match="takes 589.8 GB .* at most --longest 5929, or"):
        longest_pack(35_000, small, 16 << 30, whole=True)
