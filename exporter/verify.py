"""Verifies an artifact: every engine in it against eager fair-esm in float64.

The data's path: packs -> the oracle and eager's own error (``Gate``) -> each engine's verdict ->
planted faults, if asked for -> one report.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import torch

from exporter import int8_weights, shared_weights
from exporter.environment import describe_environment
from exporter.errors import ExportError
from exporter.packed_forward import PackedESM2
from exporter.parity.budgets import Budget, budgets_for
from exporter.parity.cache import Cache
from exporter.parity.cross_check import check_against_cpu, checked_pack
from exporter.parity.device import arithmetic_of, reference_device
from exporter.parity.oracle import Answers, layer_norm_of, run_eager
from exporter.parity.overflow import find_overflow
from exporter.parity.packs import Pack, as_batch, parity_packs
from exporter.parity.report import SCHEMA_VERSION, FaultVerdict, Report, is_passed
from exporter.parity.verdict import WEIGHTS, Check, EngineVerdict, exact, judge
from exporter.parity.without_card import STAND_INS, profiles_here, stand_in_artifact
from exporter.weights import Reference, fair_esm_version
from runtime.engine import Attention, Engine
from runtime.engines.parts import InParts
from runtime.errors import EngineError, UnsupportedError
from runtime.loading import load
from runtime.manifest import Manifest, Profile
from runtime.pooling import Pool
from runtime.weights_file import FILE_NAME as WEIGHTS_FILE


@dataclass(frozen=True)
class ProofOptions:
    """How to plant faults: in how many processes, and in which formats (None: in all)."""

    jobs: int = 1
    engines: Sequence[str] | None = None


@dataclass(frozen=True)
class Proof:
    """Asks for planted faults; ``load`` gives the reference in each process."""

    load: Callable[[], Reference]
    options: ProofOptions


class Gate:
    """What engines are compared with, computed once.

    Args:
        reference: eager fair-esm with the original weights.
        manifest: of the artifact: its layers, pooling and dtype.
        packs: what is run, by name.
        cache: of eager fair-esm's answers.
        device: where engines run, as in ``runtime.load``; with ``"cuda"`` eager fair-esm runs there
            too, and its float64 answers are checked against the CPU's.

    Raises:
        ExportError: there is nothing to compare, or no reference on this device.
    """

    def __init__(
        self,
        reference: Reference,
        manifest: Manifest,
        packs: Mapping[str, Pack],
        cache: Cache | None = None,
        device: str = "auto",
    ):
        if not any(packs.values()):
            raise ExportError(
                "there are no proteins to compare: a gate that compares nothing fails"
            )
        self.reference = reference
        self.packs = packs
        self.device = device
        self.dtype: torch.dtype = getattr(torch, manifest.dtype)
        layers = tuple(manifest.layers)
        pooling: Pool = manifest.pool or "mean"
        on = reference_device(device)
        run = partial(run_eager, reference, layers=layers, pooling=pooling, cache=cache)
        self._run_eager = partial(run, packs=packs)
        if on != "cpu":
            small = {"checked": checked_pack()}
            check_against_cpu(
                lambda where: run(small, dtype=torch.float64, device=where)["checked"], on
            )
        self._oracle = self._run_eager(dtype=torch.float64, device=on)
        self._eager = self._run_eager(dtype=self.dtype, device=on)
        self._eager_int8: dict[str, Answers] | None = None

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
        threads: int | None, profiles: Sequence[Profile] = (),
    ) -> EngineVerdict:  # fmt: skip
        is_int8 = manifest.engines[name].quantised is not None
        weights = self._judge_weights(folder, is_int8)
        eager = self._in_int8() if is_int8 else self._eager
        try:
            with load(folder, name, device, attention, threads, check_files=False) as whole:
                engine: Engine = InParts(whole, profiles) if profiles else whole
                verdict = judge(engine, folder, manifest, self.packs, self._oracle, eager, weights)
        except UnsupportedError:
            raise
        except EngineError as error:
            return EngineVerdict(name, "failed", str(error))
        return self._name_overflow(verdict)

    def _judge_stand_in(
        self, folder: Path, manifest: Manifest, name: str, why: str
    ) -> EngineVerdict:
        """Of an engine that cannot run here: failed if its graph is wrong, else not measured."""
        if name not in STAND_INS:
            return EngineVerdict(name, "not measured", why)
        with stand_in_artifact(folder, manifest, name) as (copy, described):
            profiles = profiles_here(manifest, name)
            try:
                verdict = self._judge(
                    copy, described, STAND_INS[name], "cpu", "standard", None, profiles
                )
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

    def _in_int8(self) -> dict[str, Answers]:
        if self._eager_int8 is None:
            self._eager_int8 = self._run_eager(dtype=torch.float32, int8=True)
        return self._eager_int8

    def _judge_weights(self, folder: Path, is_int8: bool) -> Check:
        packed = PackedESM2(self.reference.model)
        found = shared_weights.differences(packed, folder, self.dtype)
        if is_int8:
            found += int8_weights.differences(packed, folder)
        return exact(WEIGHTS, found)

    def _name_overflow(self, verdict: EngineVerdict) -> EngineVerdict:
        """Adds the layer to the reason of a verdict that failed for NaN or Inf."""
        for row in verdict.rows:
            if "NaN or Inf" in row.problem:
                place = find_overflow(self.reference, self.dtype, self.packs[row.pack])
                reason = f"{verdict.reason}. {place}" if place else verdict.reason
                return msgspec.structs.replace(verdict, reason=reason)
        return verdict


def verify(
    folder: Path,
    manifest: Manifest,
    reference: Reference,
    engines: Iterable[str] | None = None,
    seed: int = 0,
    own_packs: Mapping[str, Pack] | None = None,
    attention: Attention = "auto",
    cache: Cache | None = None,
    prove: Proof | None = None,
    device: str = "auto",
) -> Report:
    """Compares engines with the reference on every pack.

    Args:
        folder: the artifact.
        manifest: of the artifact.
        reference: eager fair-esm with the weights that the artifact was built from.
        engines: formats; None takes all that the manifest lists.
        seed: of the random packs.
        own_packs: of a user, compared beside the fixed list.
        attention: ``"auto"`` or ``"standard"``.
        cache: of eager fair-esm's answers; None computes them.
        prove: also plant faults, and demand that each is rejected.
        device: see ``Gate``.

    Raises:
        ExportError: the weights hold NaN or Inf, or there is nothing to compare.
    """
    chosen = list(manifest.engines if engines is None else engines)
    wanted = _formats_to_plant_in(prove, chosen, manifest)
    if names := shared_weights.not_finite(folder):
        raise ExportError(
            f"{folder / WEIGHTS_FILE} holds NaN or Inf in {len(names)} tensors "
            f"({', '.join(names[:3])}): build it again from whole weights"
        )
    packs = {**parity_packs(seed), **(own_packs or {})}
    gate = Gate(reference, manifest, packs, cache, device)
    verdicts = [gate.judge(folder, manifest, name, attention) for name in chosen]
    faults: list[FaultVerdict] = []
    # In engines that passed: a fault in one that fails anyway would prove nothing.
    sound = [v.engine for v in verdicts if v.status == "passed" and v.engine in wanted]
    if prove and sound:
        from exporter.parity.prove import prove_gate

        faults = prove_gate(
            folder, manifest, reference, prove.load, sound, attention, cache, prove.options.jobs,
            device,
        )  # fmt: skip
    batches = {name: as_batch(pack) for name, pack in packs.items()}
    return Report(
        schema_version=SCHEMA_VERSION,
        artifact=manifest.name,
        passed=is_passed(verdicts, faults),
        synthetic=manifest.weights.kind == "synthetic",
        architecture=manifest.architecture.name,
        num_layers=manifest.architecture.num_layers,
        dtype=manifest.dtype,
        layers=manifest.layers,
        pool=manifest.pool,
        seed=seed,
        packs={name: (batch.num_proteins, batch.num_tokens) for name, batch in batches.items()},
        reference={
            "model": f"eager fair-esm {fair_esm_version()} in float64, one protein at a time",
            "device": arithmetic_of(reference_device(device)),
            "layer_norm": layer_norm_of(reference),
            "weights": f"{reference.origin.kind}: {reference.origin.source}",
            "weights digest": reference.origin.state_sha256,
        },
        environment=describe_environment(),
        budgets=_budgets(manifest, chosen),
        engines=verdicts,
        faults=faults,
    )


def _budgets(manifest: Manifest, engines: Iterable[str]) -> list[Budget]:
    """Of all engines, each rule once."""
    dtypes = ["int8" if manifest.engines[e].quantised else manifest.dtype for e in engines]
    rules = [
        rule for dtype in dtypes for rule in budgets_for(dtype, manifest.architecture.num_layers)
    ]
    return list(dict.fromkeys(rules))


def _formats_to_plant_in(
    prove: Proof | None, chosen: Sequence[str], manifest: Manifest
) -> Sequence[str]:
    # A plan takes minutes to build, and there would be one for each fault and kind of card.
    possible = [name for name in chosen if not manifest.engines[name].plans]
    if prove is None or prove.options.engines is None:
        return possible
    wanted = prove.options.engines
    if not wanted or set(wanted) - set(possible):
        raise ExportError(
            f"faults can be planted in {', '.join(possible) or 'no engine that was chosen'}, "
            f"got {', '.join(wanted) or 'none'}"
        )
    return wanted
