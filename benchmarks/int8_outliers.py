"""How far int8 is from float64: large channels, smoothing, bits of weights, linears in float.

    python -m benchmarks.int8_outliers esm2_t6_8M_UR50D esm2_t12_35M_UR50D

Eager numbers: the packed forward with its linears in int8's steps, which is what the gate holds
``onnx-int8`` against. Beside the errors, what a user of variants would see, against float32: the
order of all single substitutions of a protein by masked marginals, and its pseudo-perplexity. That
of random weights is without bounds, so its logarithm is shown: nats a residue.
"""

import argparse
import copy
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporter.model.packed_forward import PackedESM2
from exporter.model.reference import WeightsSource, load_reference
from exporter.parity.rules.variants import spearman
from exporter.parity.truth.packs import parity_packs
from exporter.weights.calibration import BUILT_IN, measure
from exporter.weights.int8 import LEVELS, LEVELS_BEFORE, Recipe, linears
from exporter.weights.int8_eager import quantised_linears
from exporter.weights.mixture import by_sensitivity, without
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
    """Prints two tables of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="architectures of synthetic weights")
    cases = [(n, outliers) for n in parser.parse_args().models for outliers in (False, True)]
    for header, rows in (
        ("smoothed | weights within +-", _smoothed),
        ("inputs in float | of all multiplications in linears", _mixtures),
    ):
        print(f"\n| model | weights | {header} | embeddings | logits | 1 - Spearman | nats |")
        print("|---|---|---|---|---|---|---|---|")
        for name, outliers in cases:
            for row in rows(_Case(name, outliers)):
                print(f"| {name} | {'outliers' if outliers else 'random'} | {row} |", flush=True)


class _Case:
    """A model, and what it gives in float64 and in float32."""

    @torch.no_grad()
    def __init__(self, name: str, outliers: bool):
        reference = load_reference(WeightsSource("synthetic", name, outliers=outliers))
        self.packed = PackedESM2(reference.model, [reference.architecture.num_layers]).eval()
        packs = parity_packs()
        self._texts = [p.sequence for p in (*packs["many masks"], *packs["mixed"])]
        self._truth = _run(copy.deepcopy(self.packed).double(), self._texts)
        self._wide = _task(self.packed)
        self.linears = dict(linears(self.packed))
        self.smoothing = measure(self.packed, self.linears.items(), BUILT_IN)

    @torch.no_grad()
    def errors_of(self, recipe: Recipe) -> str:
        """The last columns of a row."""
        with quantised_linears(self.packed, recipe):
            logits, embeddings = (
                float((x.double() - y).norm() / y.norm())
                for x, y in zip(_run(self.packed, self._texts), self._truth, strict=True)
            )
            task = _task(self.packed)
        rank = spearman(task.scores, self._wide.scores)
        nats = f"{self._wide.nats:.3f} {task.nats - self._wide.nats:+.3f}"
        return f"{embeddings:.4f} | {logits:.4f} | {1 - rank:.5f} | {nats}"


def _smoothed(case: _Case) -> Iterator[str]:
    for used in (NOTHING, case.smoothing):
        how = (
            f"{len(used.factors)} inputs, {len(used.multiplied)} by a node"
            if used.factors
            else "no"
        )
        for levels in (LEVELS_BEFORE, LEVELS):
            recipe = Recipe(list(case.linears), used, levels)
            yield f"{how} | {levels} | {case.errors_of(recipe)}"


def _mixtures(case: _Case) -> Iterator[str]:
    recipe = Recipe(list(case.linears), case.smoothing)
    order = by_sensitivity(case.packed, recipe, BUILT_IN)
    whole = sum(linear.weight.numel() for linear in case.linears.values())
    for share in (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4):
        kept = order[: round(share * len(order))]
        in_float = sum(case.linears[r].weight.numel() for site in kept for r in site.readers)
        errors = case.errors_of(without(recipe, kept))
        yield f"{len(kept)} of {len(order)} | {in_float / whole:.0%} | {errors}"


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


if __name__ == "__main__":
    main()
