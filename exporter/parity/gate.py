"""The gate: what engines are compared with, and each engine on every pack."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import torch
from tqdm import tqdm

from exporter.errors import ExportError
from exporter.formats.table import FORMATS
from exporter.model.packed_forward import PackedESM2
from exporter.model.reference import Reference
from exporter.parity.answers import Answers
from exporter.parity.probing import Probe
from exporter.parity.production import rows_of_command
from exporter.parity.rules import arithmetic, observed
from exporter.parity.rules.heads import head_checks
from exporter.parity.rules.rows import Row, rows_of
from exporter.parity.rules.task import Answer, compare_tasks
from exporter.parity.rules.verdict import (
    INTERNALS,
    REPEATED,
    TOKENS,
    WEIGHTS,
    Check,
    EngineVerdict,
    exact,
    verdict_of,
    worst,
)
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.cross_check import check_against_cpu, checked_pack
from exporter.parity.truth.device import reference_device
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.overflow import find_overflow
from exporter.parity.truth.packs import STREAM, Pack, as_batch, with_names
from exporter.weights import int8 as int8_weights
from exporter.weights import shared as shared_weights
from runtime import repeats
from runtime.attention import Attention
from runtime.engine import Engine
from runtime.engines.splitting import InParts
from runtime.errors import EngineError, Esm2Error, UnsupportedError
from runtime.loading import load
from runtime.manifest_schema import EMBEDDING, HEAD, Manifest, Profile
from runtime.pooling import Pool
from runtime.selftest import all_outputs

# Tokens of a pack that is run again; state does not ask how large a pack is.
REPEATED_TOKENS = 200
# Of each of two threads: a race that shows in a run of 40 is then met more likely than not.
ROUNDS = 3


@dataclass(frozen=True)
class Gate:
    """What engines are compared with, computed once by ``prepare``.

    Attributes:
        reference: eager fair-esm with the original weights.
        packs: what is run, by name.
        device: where engines run, as in ``runtime.load``.
        dtype: of the artifact.
        oracle: eager fair-esm in float64 on each pack.
        eager: eager fair-esm in ``dtype`` on each pack.
        run_eager: what else of eager fair-esm may be asked for.
        probe: of engines in half precision, or why there is none; None for float32.
    """

    reference: Reference
    packs: Mapping[str, Pack]
    device: str
    dtype: torch.dtype
    oracle: Mapping[str, Answers]
    eager: Mapping[str, Answers]
    run_eager: Callable[..., dict[str, Answers]]
    probe: Probe | str | None = None
    _eager_int8: dict[str, Answers] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls,
        reference: Reference,
        manifest: Manifest,
        packs: Mapping[str, Pack],
        cache: Cache | None = None,
        device: str = "auto",
    ) -> "Gate":
        """Runs eager fair-esm on every pack.

        Args:
            reference: eager fair-esm with the original weights.
            manifest: of the artifact: its layers, pooling and dtype.
            packs: what is run, by name.
            cache: of eager fair-esm's answers.
            device: where engines run, as in ``runtime.load``; with ``"cuda"`` eager fair-esm runs
                there too, and its float64 answers are checked against the CPU's.

        Raises:
            ExportError: there is nothing to compare, or no reference on this device.
        """
        if not any(packs.values()):
            raise ExportError(
                "there are no proteins to compare: a gate that compares nothing fails"
            )
        dtype: torch.dtype = getattr(torch, manifest.dtype)
        layers = tuple(manifest.layers)
        pooling = cast(Pool, manifest.pool or "mean")
        on = reference_device(device)
        run = partial(run_eager, reference, layers=layers, pooling=pooling, cache=cache)
        if on != "cpu":
            small = {"checked": checked_pack()}
            check_against_cpu(
                lambda where: run(small, dtype=torch.float64, device=where)["checked"], on
            )
        run_all = partial(run, packs=packs)
        oracle = run_all(dtype=torch.float64, device=on)
        eager = run_all(dtype=dtype, device=on)
        probe = None if dtype == torch.float32 else Probe.prepare(reference, manifest, cache, on)
        return cls(reference, packs, device, dtype, oracle, eager, run_all, probe)

    def judge(
        self,
        folder: Path,
        manifest: Manifest,
        name: str,
        attention: Attention = "auto",
        threads: int | None = None,
    ) -> EngineVerdict:
        """The verdict on engine ``name`` of the artifact in ``folder``."""
        try:
            return self._judge(folder, manifest, name, self.device, attention, threads)
        except UnsupportedError as error:
            return self._judge_stand_in(folder, manifest, name, str(error))

    def _judge(
        self, folder: Path, manifest: Manifest, name: str, device: str, attention: Attention,
        threads: int | None, profiles: Sequence[Profile] = (), stands_for: str | None = None,
    ) -> EngineVerdict:  # fmt: skip
        is_int8 = manifest.engines[name].quantised is not None
        others = [self._judge_weights(folder, is_int8)]
        eager = self._in_int8(folder) if is_int8 else self.eager
        opened = partial(
            load, engine=name, device=device, attention=attention, threads=threads,
            check_files=False,
        )  # fmt: skip
        try:
            rows: list[Row] = []
            if not stands_for:
                others += self._judge_steps(folder, manifest, name, opened)
                # Before an engine is open, whose memory it would take once more.
                if STREAM in self.packs:
                    rows = rows_of_command(
                        folder,
                        manifest,
                        name,
                        pack=self.packs[STREAM],
                        truth=self.oracle[STREAM],
                        eager=eager[STREAM],
                        device=device,
                        threads=threads,
                        attention=attention,
                    )
            with opened(folder) as whole:
                engine: Engine = whole
                if profiles:
                    engine = InParts(whole, profiles, manifest.signature)
                verdict = judge(
                    engine,
                    folder,
                    manifest,
                    packs={name: p for name, p in self.packs.items() if name != STREAM},
                    oracle=self.oracle,
                    eager=eager,
                    others=others,
                    rows=rows,
                    stands_for=stands_for,
                )
        except UnsupportedError:
            raise
        except EngineError as error:
            return EngineVerdict(name, "failed", str(error))
        return self._name_overflow(verdict)

    def _judge_stand_in(
        self, folder: Path, manifest: Manifest, name: str, why: str
    ) -> EngineVerdict:
        """Of an engine that cannot run here: failed if its graph is wrong, else not measured."""
        stand_in = FORMATS[name].stand_in
        if stand_in is None:
            return EngineVerdict(name, "not measured", why)
        with stand_in(folder, manifest) as twin:
            try:
                verdict = self._judge(
                    twin.folder, twin.manifest, twin.engine, "cpu", "standard", None,
                    twin.profiles, name,
                )  # fmt: skip
            except UnsupportedError as error:
                return EngineVerdict(
                    name, "not measured", f"{why}. Nor can its graph run here: {error}"
                )
        if verdict.status == "failed":
            return msgspec.structs.replace(
                verdict, engine=name, reason=f"without its attention kernel: {verdict.reason}"
            )
        return EngineVerdict(
            name, "not measured",
            f"{why}. Its graph passed on the CPU with attention in standard ops: worst relative L2 "
            f"{verdict.worst_relative_l2:.1e}, {verdict.worst_ratio_to_eager:.2f} x eager "
            "fair-esm's own",
        )  # fmt: skip

    def only(self, names: Iterable[str]) -> "Gate":
        """The same with these packs alone."""
        return replace(self, packs=with_names(self.packs, names))

    def _in_int8(self, folder: Path) -> dict[str, Answers]:
        """Eager fair-esm with quantised linears: run when the first int8 engine asks for it."""
        if not self._eager_int8:
            recipe = int8_weights.read_recipe(folder)
            self._eager_int8.update(self.run_eager(dtype=torch.float32, int8=recipe))
        return self._eager_int8

    def _judge_steps(
        self, folder: Path, manifest: Manifest, name: str, opened: Callable[[Path], Any]
    ) -> list[Check]:
        """What half precision does inside."""
        probe = self.probe
        if probe is None:
            return []
        if not all(plan.refit for plan in manifest.engines[name].plans):
            probe = "its plan holds weights of its own"
        if isinstance(probe, str):
            return [worst(arithmetic.STEP, [], probe)]
        return probe.judge(folder, manifest, name, opened)

    def _judge_weights(self, folder: Path, is_int8: bool) -> Check:
        packed = PackedESM2(self.reference.model, contacts=self.reference.contacts)
        found = shared_weights.differences(packed, folder, self.dtype)
        if is_int8:
            found += int8_weights.differences(packed, folder)
        return exact(WEIGHTS, found)

    def _name_overflow(self, verdict: EngineVerdict) -> EngineVerdict:
        """Adds the layer to the reason of a verdict that failed for NaN or Inf."""
        for row in verdict.rows:
            if "NaN or Inf" in row.problem and row.pack in self.packs:
                place = find_overflow(self.reference, self.dtype, self.packs[row.pack])
                reason = f"{verdict.reason}. {place}" if place else verdict.reason
                return msgspec.structs.replace(verdict, reason=reason)
        return verdict


def judge(
    engine: Engine,
    folder: Path,
    manifest: Manifest,
    *,
    packs: Mapping[str, Pack],
    oracle: Mapping[str, Answers],
    eager: Mapping[str, Answers],
    others: Sequence[Check] = (),
    rows: Sequence[Row] = (),
    stands_for: str | None = None,
) -> EngineVerdict:
    """Runs an engine on every pack and compares every output.

    Args:
        engine: loaded from ``folder``.
        folder: the artifact.
        manifest: of it.
        packs: what to run, by name.
        oracle: eager fair-esm in float64 on each.
        eager: eager fair-esm in the engine's dtype on each.
        others: what else was looked at, of its weights and of its arithmetic.
        rows: of outputs that were compared already.
        stands_for: the format whose graph it runs, where that is not its own.
    """
    observe = FORMATS[stands_for or engine.spec.format].observe
    found = list(rows)
    tokens: list[str] = []
    inside: list[str] = []
    attended: list[tuple[float, str]] = []
    ran: dict[str, repeats.First] = {}
    pairs, eager_pairs = [], []
    for name, pack in tqdm(packs.items(), desc=engine.spec.format, leave=False, disable=None):
        truth = oracle[name]
        try:
            batch = as_batch(pack)
            with observe(folder, manifest, batch) as seen:
                outputs = engine.run(batch)
            tensors = all_outputs(engine, outputs, batch, manifest)
            if batch.num_tokens <= REPEATED_TOKENS:
                ran[name] = batch, outputs
        except Esm2Error as error:
            found.append(
                Row(
                    pack=name,
                    tensor="all outputs",
                    rows="tokens",
                    longest=truth.max_seqlen,
                    problem=str(error),
                )
            )
            continue
        if not (
            np.array_equal(batch.input_ids, truth.input_ids)
            and np.array_equal(batch.cu_seqlens, truth.cu_seqlens)
        ):
            tokens.append(name)
        wrong = observed.problems(seen, truth, manifest.architecture.num_layers)
        inside += [f"pack {name!r}: {problem}" for problem in wrong]
        attended += [
            (
                arithmetic.attention_rounding(call, truth.cu_seqlens, manifest.dtype),
                f"layer {layer}, pack {name!r}",
            )
            for layer, call in enumerate(seen.attended, start=1)
        ]
        pack_rows = rows_of(name, tensors, truth, eager[name], manifest)
        found += pack_rows
        if not any(row.problem for row in pack_rows):
            expected = _answer(truth)
            given = Answer(truth.input_ids, outputs.logits, tensors[EMBEDDING])
            pairs.append((given, expected))
            eager_pairs.append((_answer(eager[name]), expected))
    tasks = compare_tasks(pairs, eager_pairs) if pairs else None
    checks = [
        exact(TOKENS, [f"pack {name!r}" for name in tokens]),
        exact(INTERNALS, inside),
        exact(REPEATED, repeats.problems(engine, ran, ROUNDS)),
        *others,
    ]
    if manifest.head:
        largest = max(float(np.abs(answers.tensors[HEAD]).max()) for answers in oracle.values())
        checks += head_checks(found, largest, manifest.dtype, manifest.architecture.embed_dim)
    # Asked for, it is the reference's arithmetic, which rounds scores too; eager is its measure.
    if attended and engine.spec.attention != "standard":
        budget = arithmetic.attention_budget(engine.spec.device)
        checks.append(worst(budget, attended))
    return verdict_of(
        engine.spec,
        manifest.architecture.num_layers,
        found,
        tasks,
        compare_tasks(eager_pairs, eager_pairs) if eager_pairs else None,
        checks,
    )


def _answer(answers: Answers) -> Answer:
    tensors = answers.tensors
    return Answer(answers.input_ids, tensors.get("logits"), tensors[EMBEDDING])
