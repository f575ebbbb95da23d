"""The packs that every engine must pass. None of them is used for tracing.

Proteins are text, as a FASTA file gives them: the engine's side tokenizes and packs them with the
runtime, the oracle's side with fair-esm, so that a fault of either shows.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import numpy as np

from runtime import tokenizer
from runtime.bin_packing import even_packs
from runtime.errors import InputError
from runtime.manifest_schema import Architecture
from runtime.packing import PackedBatch

# The proteins that are run as users run them, and not as one pack (``exporter.parity.production``).
STREAM = "stream"
COMMON_RESIDUES = "LAGVSERTIDPKQNFYMHWC"
RARE_RESIDUES = "XBUZO.-"
# Tokens of the longest protein: beyond the 1,024 that ESM-2 was trained on, and the 2,048 up to
# which float16 counts.
LONGEST = 2_050
# That eager fair-esm attends at once in longer ones (``exporter.parity.truth.query_blocks``):
# products of fewer are slower; scores of more take more memory than all else.
QUERIES = 128
# Sizes that code likes: blocks, the default budgets of packs. Counters and grids end there.
BLOCK, LARGEST = 4_096, 16_384


@dataclass(frozen=True)
class Protein:
    """Residues, inline tokens such as ``<mask>`` among them.

    Attributes:
        sequence: as in FASTA.
        bare: without BOS and EOS.
    """

    sequence: str
    bare: bool = False


Pack = Sequence[Protein]


def parity_packs(seed: int = 0) -> dict[str, Pack]:
    """Named packs: a fixed list, and random packings drawn with ``seed``."""
    random = np.random.default_rng(seed)
    short = [protein(random, 10) for _ in range(125)]
    thirty = [protein(random, 28) for _ in range(50)]
    masked = ((150, 0.15), (90, 0.5), (200, 0.0), (33, 0.8))
    mixed = [protein(random, length) for length in (3, 57, 210, 8, 399, 120, 64, 1)]
    packs: dict[str, Pack] = {
        "one protein": [protein(random, 283)],
        "one residue": [protein(random, 1)],
        "one token": [protein(random, 30), Protein("X", bare=True), protein(random, 12)],
        "one token alone": [Protein("M", bare=True)],
        "two tokens": [Protein("K", bare=True), Protein("A", bare=True)],
        "16384 tokens": _filled(LARGEST, [], short),
        "4096 tokens": _filled(BLOCK, [protein(random, 498)], thirty),
        "beyond 2048": [protein(random, LONGEST - 2), protein(random, 40)],
        "every token": _every_token(random),
        "many masks": [protein(random, length, share) for length, share in masked],
        # An answer that is kept by the bounds of a pack is another's here.
        "many masks, others": [
            protein(random, length, 0.6 - share / 2) for length, share in masked
        ],
        "nearly all masks": [_nearly_all_masks(random, 120), protein(random, 75)],
        "mixed": mixed,
        "mixed, permuted": [mixed[i] for i in (4, 0, 7, 2, 6, 1, 5, 3)],
        "one of mixed, alone": [mixed[2]],
    }
    for i in range(3):
        packs[f"random {i}"] = _drawn(random)
    # Proteins that eager fair-esm has answered already, some twice.
    packs[STREAM] = [*mixed, *thirty[:6], *packs["many masks"], *mixed[:4]]
    return packs


def packs_of(sequences: Iterable[str], name: str, max_tokens: int = 4096) -> dict[str, Pack]:
    """A user's own proteins, packed as ``esm2-run embed`` packs them.

    Raises:
        InputError: there are none, or one without residues: its mean embedding is NaN.
    """
    proteins = [Protein(sequence) for sequence in sequences]
    if not proteins:
        raise InputError(f"{name} holds no proteins: there is nothing to compare")
    lengths = [len(tokenizer.tokenize(protein.sequence)) for protein in proteins]
    if min(lengths) == len(tokenizer.tokenize("")):
        number = lengths.index(min(lengths)) + 1
        raise InputError(f"protein {number} of {name} has no residues. Remove it")
    packings = even_packs(lengths, max_tokens)
    return {
        f"{name} {number}": [proteins[i] for i in packing]
        for number, packing in enumerate(packings, start=1)
    }


def as_batch(pack: Pack) -> PackedBatch:
    """What a user's run makes of the proteins: the runtime's tokenizer and packing."""
    return PackedBatch.from_tokens(
        [
            (tokenizer.encode if protein.bare else tokenizer.tokenize)(protein.sequence)
            for protein in pack
        ]
    )


def protein(random: np.random.Generator, length: int, masked: float = 0.0) -> Protein:
    """``length`` common residues, about a share ``masked`` of them masked."""
    residues = random.choice(list(COMMON_RESIDUES), length)
    is_mask = random.random(length) < masked
    return Protein("".join(np.where(is_mask, "<mask>", residues)))


def with_names(packs: Mapping[str, Pack], names: Iterable[str]) -> dict[str, Pack]:
    """Those packs alone."""
    return {name: packs[name] for name in names}


def _drawn(random: np.random.Generator) -> Pack:
    """Lengths and their number over orders of magnitude; tokens at or beside a power of two."""
    left = int(2 ** random.integers(7, 12) + random.integers(-1, 2))
    proteins: list[Protein] = []
    for length in np.exp(random.uniform(0, np.log(1022), int(2 ** random.uniform(1, 6)))):
        # The last but one leaves room for a whole protein.
        if left < int(length) + 2 + 3:
            break
        proteins.append(protein(random, int(length)))
        left -= int(length) + 2
    return [*proteins, protein(random, left - 2)]


def bytes_needed(num_tokens: int, architecture: Architecture, whole: bool) -> int:
    """What a protein takes in float64, beside the weights.

    A block's scores, their softmax and the memory of the block before; and GELU, whose formula
    (esm/modules.py:24) holds four arrays of 4 E at once, beside a few of E.

    Args:
        num_tokens: of the protein.
        architecture: of the model.
        whole: scores of all queries at once.
    """
    rows = num_tokens if whole else QUERIES
    return 8 * num_tokens * (3 * rows * architecture.num_heads + 20 * architecture.embed_dim)


def longest_pack(
    num_tokens: int, architecture: Architecture, memory: int | None, whole: bool = False
) -> Pack:
    """A protein of so many tokens, and a short one.

    Args:
        num_tokens: of the long one, BOS and EOS included.
        architecture: of the model.
        memory: bytes of this machine; None where that is unknown.
        whole: see ``bytes_needed``.

    Raises:
        InputError: fair-esm's float64 answers to it would not fit.
    """
    needed = partial(bytes_needed, architecture=architecture, whole=whole)
    if memory is not None and needed(num_tokens) > memory:
        most = bisect_right(range(num_tokens), memory, key=needed) - 1
        raise InputError(
            f"fair-esm in float64 takes {needed(num_tokens) / 1e9:.1f} GB for {num_tokens:,} "
            f"tokens, this machine has {memory / 1e9:.1f}: at most --longest {most}, or a larger "
            "machine"
        )
    random = np.random.default_rng(num_tokens)
    return [protein(random, num_tokens - 2), protein(random, 40)]


def large_pack(num_tokens: int) -> Pack:
    """Short proteins in so many tokens: most are there over and over, eager fair-esm runs 125."""
    random = np.random.default_rng(num_tokens)
    return _filled(num_tokens, [], [protein(random, 10) for _ in range(125)])


def _filled(num_tokens: int, first: Pack, others: Pack) -> Pack:
    """``first``, then ``others`` over and over, in ``num_tokens`` tokens to the last."""
    pack = list(first)
    left = num_tokens - sum(len(protein.sequence) + 2 for protein in first)
    for another in cycle(others):
        length = len(another.sequence) + 2
        # The last but one leaves room for a whole protein.
        if left < length + 3:
            break
        pack.append(another)
        left -= length
    return [*pack, Protein(others[0].sequence[:1] * (left - 2))]


def _nearly_all_masks(random: np.random.Generator, length: int) -> Protein:
    residues = ["<mask>"] * length
    residues[length // 2] = str(random.choice(list(COMMON_RESIDUES)))
    return Protein("".join(residues))


def _every_token(random: np.random.Generator) -> Pack:
    tokens = [token for token in tokenizer.TOKENS if token != "<pad>"]
    return [Protein("".join(tokens)), Protein("".join(random.permutation(tokens)))]


def rare(random: np.random.Generator, length: int) -> Protein:
    """Common, rare and ambiguous residues and masks, each about as often."""
    alphabet = [*COMMON_RESIDUES, *RARE_RESIDUES, "<mask>"]
    return Protein("".join(random.choice(alphabet, length)))
