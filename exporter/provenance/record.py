"""What a build was asked for, as its provenance keeps it: enough to ask for it again."""

from pathlib import Path
from typing import Any

import msgspec

from exporter.build_options import BuildOptions
from exporter.formats.tensorrt.options import PlanOptions
from exporter.model.reference import SourceKind, WeightsSource
from exporter.model.sources.probe import ProbeSource
from exporter.parity.verify import ProofOptions
from exporter.weights.calibration import Calibration
from runtime.pooling import Pool


class Plans(msgspec.Struct, frozen=True):
    """See ``PlanOptions``."""

    compute_capabilities: list[str]
    max_tokens: int
    max_seqlen: int


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``BuildOptions`` without a path of the machine.

    Attributes:
        source: a name; of a file or folder the last part of its path.
        probe, calibration: the same.
        prove_in: formats in which faults were planted; None: in all.
        plans: of target ``tensorrt``.
    """

    kind: SourceKind
    source: str
    seed: int
    outliers: bool
    contacts: bool
    with_head: bool
    probe: str | None
    probe_on: str | None
    targets: list[str]
    layers: list[int] | None
    pool: Pool | None
    dtype: str
    device: str
    longest: int
    keep_passed: bool
    prove: bool
    prove_in: list[str] | None
    calibration: str | None
    int8_budget: float | None
    int8_bits: int | None
    plans: Plans | None


def record_of(options: BuildOptions) -> Record:
    """For the provenance of what ``options`` build."""
    source, prove = options.source, options.prove
    int8 = options.of_format.get("onnx-int8", {})
    calibration = int8.get("calibration")
    plans = options.of_format.get("tensorrt", {}).get("options", PlanOptions())
    return Record(
        kind=source.kind,
        source=Path(source.value).name if Path(source.value).exists() else source.value,
        seed=source.seed,
        outliers=source.outliers,
        contacts=source.contacts,
        with_head=source.with_head,
        probe=Path(source.probe.path).name if source.probe else None,
        probe_on=source.probe.on if source.probe else None,
        targets=list(options.targets),
        layers=None if options.layers is None else list(options.layers),
        pool=options.pool,
        dtype=options.dtype,
        device=options.device,
        longest=options.longest,
        keep_passed=options.keep_passed,
        prove=prove is not None,
        prove_in=list(prove.engines) if prove and prove.engines is not None else None,
        calibration=calibration.proteins if calibration else None,
        int8_budget=int8.get("budget"),
        int8_bits=int8.get("bits"),
        plans=Plans(list(plans.compute_capabilities), plans.max_tokens, plans.max_seqlen)
        if "tensorrt" in options.targets
        else None,
    )


def options_of(
    record: Record, out: Path, source: str, probe: str | None, calibration: Calibration | None
) -> BuildOptions:
    """What builds the same into ``out``.

    Args:
        record: of the artifact.
        out: the new one.
        source: of its weights: a name or a path.
        probe: path of its probe.
        calibration: its proteins.
    """
    int8 = {"calibration": calibration, "budget": record.int8_budget, "bits": record.int8_bits}
    of_format: dict[str, dict[str, Any]] = {}
    if asked := {name: value for name, value in int8.items() if value is not None}:
        of_format["onnx-int8"] = asked
    if plans := record.plans:
        cards = tuple(plans.compute_capabilities)
        of_format["tensorrt"] = {"options": PlanOptions(cards, plans.max_tokens, plans.max_seqlen)}
    given = ProbeSource(probe, record.probe_on or "mean") if probe else None
    return BuildOptions(
        source=WeightsSource(
            record.kind, source, record.seed, record.contacts, record.with_head, given,
            record.outliers,
        ),
        targets=record.targets,
        layers=record.layers,
        pool=record.pool,
        dtype=record.dtype,
        prove=ProofOptions(engines=record.prove_in) if record.prove else None,
        out=out,
        device=record.device,
        of_format=of_format,
        longest=record.longest,
        keep_passed=record.keep_passed,
    )  # fmt: skip
