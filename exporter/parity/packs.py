"""The packs that every engine must pass. None of them is used for tracing."""

import numpy as np
from numpy.typing import NDArray

from runtime.packing import PackedBatch
from runtime.tokenizer import CLS_ID, EOS_ID, ID_OF_TOKEN, MASK_ID, PAD_ID, TOKENS, X_ID

Protein = NDArray[np.int64]

_COMMON = np.array([ID_OF_TOKEN[residue] for residue in "LAGVSERTIDPKQNFYMHWC"])


def parity_packs(seed: int = 0) -> dict[str, PackedBatch]:
    """Named packs: a fixed list, and random packings drawn with ``seed``."""
    random = np.random.default_rng(seed)
    short = [_protein(random, 10) for _ in range(125)]
    mixed = [_protein(random, length) for length in (3, 57, 210, 8, 399, 120, 64, 1)]
    proteins: dict[str, list[Protein]] = {
        "one protein": [_protein(random, 283)],
        "one residue": [_protein(random, 1)],
        "one token": [_protein(random, 30), np.array([X_ID]), _protein(random, 12)],
        "1000 of 12 tokens": short * 8,
        "skewed": [_protein(random, 998), *(_protein(random, 28) for _ in range(100))],
        "beyond 1024": [_protein(random, 1600), _protein(random, 40)],
        "every token": _every_token(random),
        "many masks": [
            _masked(random, _protein(random, n), share)
            for n, share in ((150, 0.15), (90, 0.5), (200, 0.0), (33, 0.8))
        ],
        "nearly all masks": [_nearly_all_masks(random, 120), _protein(random, 75)],
        "mixed": mixed,
        "mixed, permuted": [mixed[i] for i in (4, 0, 7, 2, 6, 1, 5, 3)],
        "one of mixed, alone": [mixed[2]],
    }
    for i in range(3):
        lengths = np.exp(random.normal(np.log(280), 0.6, size=6)).clip(20, 1022).astype(int)
        proteins[f"random {i}"] = [_protein(random, int(n)) for n in lengths]
    return {name: PackedBatch.from_tokens(members) for name, members in proteins.items()}


def _protein(random: np.random.Generator, residues: int) -> Protein:
    return np.concatenate(([CLS_ID], random.choice(_COMMON, residues), [EOS_ID]))


def _masked(random: np.random.Generator, protein: Protein, share: float) -> Protein:
    chosen = random.random(len(protein)) < share
    chosen[[0, -1]] = False
    return np.where(chosen, MASK_ID, protein)


def _nearly_all_masks(random: np.random.Generator, residues: int) -> Protein:
    protein = np.full(residues + 2, MASK_ID)
    protein[[0, residues // 2, -1]] = CLS_ID, random.choice(_COMMON), EOS_ID
    return protein


def _every_token(random: np.random.Generator) -> list[Protein]:
    tokens = np.array([i for i in range(len(TOKENS)) if i != PAD_ID])
    in_order = np.concatenate(([CLS_ID], tokens, [EOS_ID]))
    shuffled = np.concatenate(([CLS_ID], random.permutation(tokens), [EOS_ID]))
    return [in_order, shuffled]
