"""How far int8 is from float64: large channels, smoothing, bits of weights, linears in float.

    python -m benchmarks.int8_outliers esm2_t6_8M_UR50D esm2_t12_35M_UR50D [--peer]

Eager numbers: the packed forward with its linears in int8's steps, which is what the gate holds
``onnx-int8`` against. Beside the errors, what a user of variants would see, against float32: the
order of all single substitutions of a protein by masked marginals, and its pseudo-perplexity. That
of random weights is without bounds, so its logarithm is shown: nats a residue. ``--peer`` puts
esm.cpp in int8 beside them, in a process and an environment of its own.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.checkpoints import checkpoints_of
from benchmarks.contenders import starter
from benchmarks.environments import PEERS, python_of
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
from runtime.threads import usable_cores
from runtime.tokenizer import MASK_ID, tokenize

PEER = "esmcpp_int8"
PROTEIN = BUILT_IN.sequences[0]
RESIDUES = "LAGVSERTIDPKQNFYMHWC"


# From ids, bounds and the longest protein to logits and the last layer, of all tokens.
Forward = Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]


class Task(NamedTuple):
    """Of ``PROTEIN``: ``[L * 19]`` scores of substitutions, and the log of pseudo-perplexity."""

    scores: NDArray[np.float64]
    nats: float


def main() -> None:
    """Prints two tables of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="architectures of synthetic weights")
    parser.add_argument("--peer", action="store_true", help="only esm.cpp in int8")
    options = parser.parse_args()
    cases = [(n, outliers) for n in options.models for outliers in (False, True)]
    tables = [
        ("smoothed | weights within +-", _smoothed),
        ("inputs in float | of all multiplications in linears", _mixtures),
    ]
    for header, rows in [("by | with", _peer)] if options.peer else tables:
        print(f"\n| model | weights | {header} | embeddings | logits | 1 - Spearman | nats |")
        print("|---|---|---|---|---|---|---|---|")
        for name, outliers in cases:
            for row in rows(_Case(name, outliers)):
                print(f"| {name} | {'outliers' if outliers else 'random'} | {row} |", flush=True)


class _Case:
    """A model, and what it gives in float64 and in float32."""

    @torch.no_grad()
    def __init__(self, name: str, outliers: bool):
        self.reference = load_reference(WeightsSource("synthetic", name, outliers=outliers))
        last = self.reference.architecture.num_layers
        self.packed = PackedESM2(self.reference.model, [last]).eval()
        packs = parity_packs()
        self._texts = [p.sequence for p in (*packs["many masks"], *packs["mixed"])]
        self._truth = _run(copy.deepcopy(self.packed).double(), self._texts)
        self._wide = _task(self.packed)
        self.linears = dict(linears(self.packed))
        self.smoothing = measure(self.packed, self.linears.items(), BUILT_IN)

    def errors_of(self, recipe: Recipe) -> str:
        """Of the packed forward, its linears in int8's steps."""
        with quantised_linears(self.packed, recipe):
            return self.errors(self.packed)

    @torch.no_grad()
    def errors(self, forward: Forward) -> str:
        """The last columns of a row."""
        logits, embeddings = (
            float((x.double() - y).norm() / y.norm())
            for x, y in zip(_run(forward, self._texts), self._truth, strict=True)
        )
        task = _task(forward)
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


def _peer(case: _Case) -> Iterator[str]:
    """esm.cpp, which gives logits and the last layer by two calls."""
    folder = checkpoints_of(case.reference)
    start = starter(python_of(PEER), PEERS / "serve.py", PEER, folder)
    with start(usable_cores(), 1) as worker, tempfile.TemporaryDirectory() as answers:
        path = Path(answers) / "rows.npy"

        def forward(ids: Tensor, bounds: Tensor, longest: Tensor) -> Sequence[Tensor]:
            proteins = [part.tolist() for part in ids.tensor_split(bounds[1:-1].long())]
            given = []
            for what in ("logits", "answer"):
                worker.ask(what, proteins=proteins, path=str(path))
                given.append(torch.from_numpy(np.load(path)))
            return given

        version = worker.started["versions"]["esm-cpp"]
        yield f"esm.cpp {version} | {worker.started['instructions']} | {case.errors(forward)}"


def _run(forward: Forward, texts: list[str]) -> Sequence[Tensor]:
    return forward(*_tensors(PackedBatch.from_sequences(texts)))


def _tensors(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    ids, bounds = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.cu_seqlens)
    return ids, bounds, torch.tensor(batch.max_seqlen)


def _task(forward: Forward) -> Task:
    tokens = tokenize(PROTEIN)
    places = np.arange(1, len(tokens) - 1)
    copies = np.repeat(tokens[None], len(places), axis=0)
    copies[np.arange(len(places)), places] = MASK_ID
    columns = [int(tokenize(residue)[1]) for residue in RESIDUES]
    rows = []
    for part in np.array_split(np.arange(len(places)), 8):
        logits = forward(*_tensors(PackedBatch.from_tokens(list(copies[part]))))[0]
        of_copies = logits.view(len(part), len(tokens), -1)
        rows.append(of_copies[torch.arange(len(part)), torch.from_numpy(places[part])])
    logs = torch.cat(rows).double().log_softmax(dim=1).numpy()
    own = logs[np.arange(len(places)), tokens[places]]
    scores = logs[:, columns] - own[:, None]
    substituted = np.array(columns)[None] != tokens[places][:, None]
    return Task(scores[substituted], float(-own.mean()))


if __name__ == "__main__":
    main()
