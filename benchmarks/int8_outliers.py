"""How far int8 is from float64, with and without large channels and their smoothing.

    python -m benchmarks.int8_outliers esm2_t6_8M_UR50D esm2_t12_35M_UR50D

Eager numbers: the packed forward with its linears in int8's steps, which is what the gate holds
``onnx-int8`` against. Beside the errors, what a user of variants would see, against float32: the
order of all single substitutions of a protein by masked marginals, and its pseudo-perplexity. That
of random weights is without bounds, so its logarithm is shown: nats a residue.
"""

import argparse
import copy
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporter.model.packed_forward import PackedESM2
from exporter.model.reference import WeightsSource, load_reference
from exporter.parity.truth.packs import parity_packs
from exporter.weights.calibration import BUILT_IN, measure
from exporter.weights.int8 import Recipe, linears
from exporter.weights.int8_eager import quantised_linears
from exporter.weights.smoothing import NOTHING
from runtime.packing import PackedBatch
from runtime.tokenizer import MASK_ID, tokenize

PROTEIN = BUILT_IN.sequences[0]
RESIDUES = "LAGVSERTIDPKQNFYMHWC"


class Task(NamedTuple):
    """Of ``PROTEIN``: ``[L * 19]`` scores of substitutions, and the log of pseudo-perplexity."""

    scores: NDArray[np.float64]
    nats: float


def main() -> None:
    """Prints a table of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="architectures of synthetic weights")
    print("| model | weights | smoothed | embeddings | logits | Spearman | nats |")
    print("|---|---|---|---|---|---|---|")
    for name in parser.parse_args().models:
        for outliers in (False, True):
            for row in _rows(name, outliers):
                print(f"| {name} | {'outliers' if outliers else 'random'} | {row} |", flush=True)


@torch.no_grad()
def _rows(name: str, outliers: bool) -> list[str]:
    reference = load_reference(WeightsSource("synthetic", name, outliers=outliers))
    packed = PackedESM2(reference.model, [reference.architecture.num_layers]).eval()
    packs = parity_packs()
    texts = [p.sequence for p in (*packs["many masks"], *packs["mixed"])]
    truth = _run(copy.deepcopy(packed).double(), texts)
    wide = _task(packed)
    names = [name for name, _ in linears(packed)]
    smoothing = measure(packed, linears(packed), BUILT_IN)
    rows = []
    for how, used in (("no", NOTHING), ("yes", smoothing)):
        with quantised_linears(packed, Recipe(names, used)):
            logits, embeddings = (
                float((x.double() - y).norm() / y.norm())
                for x, y in zip(_run(packed, texts), truth, strict=True)
            )
            task = _task(packed)
        rank = _spearman(task.scores, wide.scores)
        inputs = f"{len(used.factors)} inputs, {len(used.multiplied)} by a node"
        rows.append(
            f"{how}: {inputs} | {embeddings:.4f} | {logits:.4f} | {rank:.5f} | "
            f"{wide.nats:.3f} {task.nats - wide.nats:+.3f}"
        )
    return rows


def _run(packed: PackedESM2, texts: list[str]) -> tuple[Tensor, ...]:
    return packed(*_tensors(PackedBatch.from_sequences(texts)))  # type: ignore[no-any-return]


def _tensors(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    ids, bounds = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.cu_seqlens)
    return ids, bounds, torch.tensor(batch.max_seqlen)


def _task(packed: PackedESM2) -> Task:
    tokens = tokenize(PROTEIN)
    places = np.arange(1, len(tokens) - 1)
    copies = np.repeat(tokens[None], len(places), axis=0)
    copies[np.arange(len(places)), places] = MASK_ID
    columns = [int(tokenize(residue)[1]) for residue in RESIDUES]
    rows = []
    for part in np.array_split(np.arange(len(places)), 8):
        logits = packed(*_tensors(PackedBatch.from_tokens(list(copies[part]))))[0]
        of_copies = logits.view(len(part), len(tokens), -1)
        rows.append(of_copies[torch.arange(len(part)), torch.from_numpy(places[part])])
    logs = torch.cat(rows).double().log_softmax(dim=1).numpy()
    own = logs[np.arange(len(places)), tokens[places]]
    scores = logs[:, columns] - own[:, None]
    substituted = np.array(columns)[None] != tokens[places][:, None]
    return Task(scores[substituted], float(-own.mean()))


def _spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


if __name__ == "__main__":
    main()
