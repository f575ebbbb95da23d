"""A deep scan by every engine, beside the loop of fair-esm's variant-prediction; in turn.

    python -m benchmarks.deep_scan ARTIFACT [ARTIFACT ...] [--rounds 3]

All single substitutions of a protein of 300 residues by masked marginals. The loop runs one masked
copy after the other through eager fair-esm in float32, as its ``predict.py`` does; artifacts
must be of the same weights.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from exporter.model.reference import Reference, load_original
from exporter.parity.rules.variants import spearman
from exporter.parity.truth.packs import protein
from runtime import manifest as manifests
from runtime.lm_head import AMINO_ACIDS
from runtime.model import load_model

Scan = Callable[[str], NDArray[np.float64]]


def main() -> None:
    """Prints a table of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--residues", type=int, default=300)
    given = parser.parse_args()
    sequence = protein(np.random.default_rng(0), given.residues).sequence
    scans: dict[str, Scan] = {}
    for folder in given.artifacts:
        manifest = manifests.read(folder)
        if not scans:
            scans["the script's loop"] = loop(load_original(folder, manifest, None))
        for engine in manifest.engines:
            scans[f"`{engine}`, {manifest.dtype}"] = load_model(folder, engine=engine).score
    rounds = [_round(scans, sequence) for _ in range(given.rounds)]
    print("| | seconds | x the loop | Spearman with its scores | furthest from them |")
    print("|---|---|---|---|---|")
    (_, expected), *_ = rounds[0].values()
    others = np.array(list(AMINO_ACIDS)) != np.array(list(sequence))[:, None]
    for name, (_, found) in rounds[0].items():
        seconds = [each[name][0] for each in rounds]
        gains = [next(iter(each.values()))[0] / each[name][0] for each in rounds]
        rank = spearman(found[others], expected[others])
        print(
            f"| {name} | {min(seconds):.1f} to {max(seconds):.1f} | {median(gains):.2f} "
            f"({min(gains):.2f} to {max(gains):.2f}) | {rank:.5f} | "
            f"{np.abs(found - expected).max():.1e} |"
        )


def loop(reference: Reference) -> Scan:
    """What the script does."""
    batch_converter = reference.alphabet.get_batch_converter()
    chosen = [reference.alphabet.get_idx(letter) for letter in AMINO_ACIDS]

    @torch.no_grad()
    def scan(sequence: str) -> NDArray[np.float64]:
        _, _, tokens = batch_converter([("protein", sequence)])
        rows = []
        for i in range(tokens.size(1)):
            masked = tokens.clone()
            masked[0, i] = reference.alphabet.mask_idx
            rows.append(torch.log_softmax(reference.model(masked)["logits"], dim=-1)[0, i])
        log_probs = torch.stack(rows)[1:-1]
        return (log_probs[:, chosen] - log_probs.gather(1, tokens[0, 1:-1, None])).double().numpy()

    return scan


def _round(scans: dict[str, Scan], sequence: str) -> dict[str, tuple[float, NDArray[np.float64]]]:
    """Seconds and scores of each."""
    found = {}
    for name, scan in scans.items():
        began = time.perf_counter()
        scores = scan(sequence)
        found[name] = time.perf_counter() - began, scores
    return found


if __name__ == "__main__":
    main()
