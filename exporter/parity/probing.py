"""An engine in half precision on weights that show each of its steps apart.

The engine's file is the artifact's; the ``weights.safetensors`` beside it is another.
"""

import math
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache as cache_of_calls
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from exporter.formats.format import Observed
from exporter.formats.stand_in import folder_beside
from exporter.formats.table import FORMATS
from exporter.model.reference import Reference
from exporter.parity.answers import Answers, Floats
from exporter.parity.rules import arithmetic
from exporter.parity.rules.budgets import Budget
from exporter.parity.rules.verdict import ROTATED, Check, exact, worst
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.packs import as_batch
from exporter.parity.truth.probe import (
    SOFT,
    STEPS,
    SUMS,
    Shown,
    filled,
    probe_of,
    probe_pack,
    shown,
)
from exporter.parity.truth.rounded import KEPT, Rounded, Step
from exporter.publish import link_or_copy
from exporter.weights import shared as shared_weights
from runtime import manifest as manifests
from runtime.engine import Engine
from runtime.manifest_schema import Manifest
from runtime.packing import PackedBatch
from runtime.weights import FILE_NAME as WEIGHTS_FILE
from runtime.weights import read_places

# An engine may leave roundings out: whose results go on unrounded. None comes first.
WAYS = [kept for number in range(len(KEPT) + 1) for kept in combinations(KEPT, number)]
Load = Callable[[Path], AbstractContextManager[Engine]]


@dataclass(frozen=True)
class Probe:
    """What engines in half precision are compared with, computed once by ``prepare``.

    Attributes:
        reference: fair-esm's model with the weights of ``exporter.parity.truth.probe``.
        batch: the pack.
        oracle: eager fair-esm in float64.
        once: the same outputs, each step's result rounded once, but for kinds of ``WAYS``.
    """

    reference: Reference
    batch: PackedBatch
    oracle: Answers
    once: Callable[[tuple[Step, ...]], dict[str, Floats]]

    @classmethod
    def prepare(
        cls, original: Reference, manifest: Manifest, cache: Cache | None, device: str
    ) -> "Probe | str":
        """Why not, where steps cannot be shown apart.

        Args:
            original: eager fair-esm with the checkpoint's weights.
            manifest: of the artifact.
            cache: of eager fair-esm's answers.
            device: where eager fair-esm runs.
        """
        shape = original.architecture
        if shape.num_layers not in manifest.layers:
            return "the last layer is not exported, in which every step would show"
        if not shown(shape):
            return f"{shape.embed_dim} columns are too few to show each step apart"
        reference = probe_of(original)
        pack, last = probe_pack(), (shape.num_layers,)
        oracle = run_eager(
            reference, {"probe": pack}, last, "mean", torch.float64, cache, device=device
        )["probe"]
        batch = as_batch(pack)
        dtype = getattr(torch, manifest.dtype)
        return cls(
            reference,
            batch,
            oracle,
            cache_of_calls(lambda kept: Rounded(reference.model, dtype, device, kept)(batch)),
        )

    def judge(self, folder: Path, manifest: Manifest, name: str, load: Load) -> list[Check]:
        """What the probe says of engine ``name``; ``load`` opens it in a folder."""
        with (
            self._beside(folder, manifest, name) as place,
            load(place) as engine,
            FORMATS[name].observe(place, manifest, self.batch) as seen,
        ):
            outputs = engine.run(self.batch)
        # Asked for, standard attention rounds scores too, as the reference does.
        skipped = (STEPS[SOFT],) if engine.spec.attention == "standard" else ()
        checks = self._steps(outputs.tensors, engine.spec.device, skipped)
        if seen.attended:
            checks.append(self._rotated(seen, manifest.dtype))
        return checks

    @contextmanager
    def _beside(self, folder: Path, manifest: Manifest, name: str) -> Iterator[Path]:
        """An artifact of the engine in ``folder`` with these weights."""
        dtype = getattr(torch, manifest.dtype)
        with folder_beside(folder) as place:
            entry = manifest.engines[name]
            needed = {manifests.FILE_NAME, manifest.golden.file, entry.file, *entry.files}
            for file in needed - {WEIGHTS_FILE}:
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy((folder / file).resolve(), place / file)
            shutil.copyfile(folder / WEIGHTS_FILE, place / WEIGHTS_FILE)
            stored = read_places(place / WEIGHTS_FILE)
            # The frequencies, which have another name there, stay the artifact's.
            for tensor_name, tensor in self.reference.model.state_dict().items():
                if tensor_name in stored:  # one at a time: of a large model all would take much
                    whole = filled(tensor.to(dtype), stored[tensor_name].shape)
                    shared_weights.overwrite(place / WEIGHTS_FILE, {tensor_name: whole})
            yield place

    def _steps(self, got: dict[str, Floats], device: str, skipped: Collection[str]) -> list[Check]:
        found: dict[Budget, list[tuple[float, str]]] = {}
        for step in shown(self.reference.architecture):
            if step.output not in self.oracle.tensors or step.step in skipped:  # no LM head
                continue
            budget = arithmetic.STEP
            if step.step == STEPS[SOFT]:
                budget = arithmetic.SOFTMAX_STEP
            elif step.step == STEPS[SUMS] and device != "cpu":
                budget = arithmetic.SUMS_ON_A_CARD
            measured = self._measured(got, step, budget.limit)
            found.setdefault(budget, []).append((measured, f"{step.step}, {step.place}"))
        return [worst(budget, measured) for budget, measured in found.items()]

    def _measured(self, got: dict[str, Floats], step: Shown, limit: float) -> float:
        """Against the first way to round that ``got`` is within ``limit`` of, or the nearest."""
        of_got, exact = (x[step.output][:, step.columns] for x in (got, self.oracle.tensors))
        nearest = math.inf
        for kept in WAYS:
            once = self.once(kept)[step.output][:, step.columns]
            nearest = min(nearest, arithmetic.step_rounding(of_got, exact, once))
            if nearest <= limit:
                break
        return nearest

    def _rotated(self, seen: Observed, dtype: str) -> Check:
        model = self.reference.model
        positions = np.concatenate([np.arange(n) for n in np.diff(self.batch.cu_seqlens)])
        inv_freq = model.layers[0].self_attn.rot_emb.inv_freq.float().numpy()
        problems = []
        if len(seen.attended) != len(model.layers):
            problems.append(f"attention runs {len(seen.attended)} times, not in each layer once")
        for layer, (q, k, *_) in zip(model.layers, seen.attended, strict=False):
            attention = layer.self_attn
            for what, tensor, bias in (("q", q, attention.q_proj), ("k", k, attention.k_proj)):
                x = bias.bias.view(attention.num_heads, attention.head_dim).numpy()
                problem = arithmetic.rotation_problem(tensor, x, positions, inv_freq, dtype)
                if problem:
                    problems.append(f"{what}: {problem}")
        return exact(ROTATED, problems)
