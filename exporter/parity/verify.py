"""Verifies an artifact: every engine in it against eager fair-esm in float64.

The data's path: packs -> the gate -> each engine's verdict -> planted faults, if asked for -> one
report.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.environment import describe_environment
from exporter.errors import ExportError
from exporter.model.reference import Reference, fair_esm_version
from exporter.parity.gate import Gate
from exporter.parity.report.schema import SCHEMA_VERSION, FaultVerdict, Report, is_passed
from exporter.parity.rules.arithmetic import OF_STEPS
from exporter.parity.rules.budgets import Budget, budgets_for
from exporter.parity.rules.heads import HEAD_RULES
from exporter.parity.rules.verdict import EngineVerdict
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.device import arithmetic_of, memory_of, reference_device
from exporter.parity.truth.heads import measure_of
from exporter.parity.truth.oracle import layer_norm_of, needs_whole_scores
from exporter.parity.truth.packs import (
    LARGEST,
    LONGEST,
    Pack,
    as_batch,
    large_pack,
    longest_pack,
    parity_packs,
)
from exporter.weights import shared as shared_weights
from runtime.attention import Attention
from runtime.describe import in_words
from runtime.device import largest_max_tokens
from runtime.manifest_schema import Manifest
from runtime.weights import FILE_NAME as WEIGHTS_FILE


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


def verify(
    folder: Path,
    manifest: Manifest,
    reference: Reference,
    *,
    engines: Iterable[str] | None = None,
    seed: int = 0,
    own_packs: Mapping[str, Pack] | None = None,
    attention: Attention = "auto",
    cache: Cache | None = None,
    prove: Proof | None = None,
    device: str = "auto",
    longest: int = LONGEST,
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
        longest: tokens of the longest protein to compare.

    Raises:
        InputError: it is too long for this machine's memory.
        ExportError: the weights hold NaN or Inf, or there is nothing to compare.
    """
    chosen = list(manifest.engines if engines is None else engines)
    wanted = _formats_to_plant_in(prove, chosen, manifest)
    if names := shared_weights.not_finite(folder):
        raise ExportError(
            f"{folder / WEIGHTS_FILE} holds NaN or Inf in {len(names)} tensors "
            f"({', '.join(names[:3])}): build it again from whole weights"
        )
    on = reference_device(device)
    packs = {**parity_packs(seed), **(own_packs or {})}
    # That a card takes by default must be proven there.
    if (largest := largest_max_tokens(on)) > LARGEST:
        packs[f"{largest} tokens"] = large_pack(largest)
    if longest > LONGEST:
        packs[f"{longest} tokens of a protein"] = longest_pack(
            longest,
            manifest.architecture,
            memory_of(on),
            needs_whole_scores(reference),
        )
    gate = Gate.prepare(reference, manifest, packs, cache, device)
    verdicts = [gate.judge(folder, manifest, name, attention) for name in chosen]
    faults: list[FaultVerdict] = []
    # In engines that passed: a fault in one that fails anyway would prove nothing.
    sound = [v.engine for v in verdicts if v.status == "passed" and v.engine in wanted]
    if prove and sound:
        from exporter.parity.prove.prove_gate import prove_gate

        faults = prove_gate(
            folder, manifest, reference, load=prove.load, engines=sound, attention=attention,
            cache=cache, jobs=prove.options.jobs, device=device,
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
            "device": arithmetic_of(on),
            "layer_norm": layer_norm_of(reference),
            "weights": f"{reference.origin.kind}: {reference.origin.source}",
            "weights digest": reference.origin.state_sha256,
            **({"head": measure_of(reference.head)} if reference.head else {}),
            **_mixtures(manifest, chosen),
        },
        environment=describe_environment(),
        budgets=[*_budgets(manifest, chosen), *_of_steps(verdicts)],
        engines=verdicts,
        faults=faults,
    )


def _budgets(manifest: Manifest, engines: Iterable[str]) -> list[Budget]:
    """Of all engines, each rule once."""
    dtypes = ["int8" if manifest.engines[e].quantised else manifest.dtype for e in engines]
    rules = [
        rule for dtype in dtypes for rule in budgets_for(dtype, manifest.architecture.num_layers)
    ]
    return list(dict.fromkeys([*rules, *(HEAD_RULES if manifest.head else ())]))


def _mixtures(manifest: Manifest, engines: Iterable[str]) -> dict[str, str]:
    """Of quantised engines, what they and their measure, eager in int8, have in float."""
    quantised = {name: manifest.engines[name].quantised for name in engines}
    return {
        f"eager in int8, for {name}": in_words(entry.mixture)
        for name, entry in quantised.items()
        if entry and entry.mixture
    }


def _of_steps(verdicts: Iterable[EngineVerdict]) -> list[Budget]:
    """Those of half precision by which an engine was judged."""
    checked = {check.name for verdict in verdicts for check in verdict.checks}
    return [budget for budget in OF_STEPS if budget.name in checked]


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
