"""``parity.json``: the whole evidence, in a versioned schema."""

from pathlib import Path
from typing import Any, Literal

import msgspec

from exporter.errors import ExportError
from exporter.parity.rules.budgets import Budget
from exporter.parity.rules.verdict import EngineVerdict
from runtime.manifest_schema import EMBEDDING

FILE_NAME = "parity.json"
SCHEMA_VERSION = 4
# Of faults that are planted once for an artifact.
EVERY_ENGINE = "every engine"

# --against: how much an error may grow between two reports of the same packs.
MAX_GROWTH = 1.5


class FaultVerdict(msgspec.Struct, frozen=True):
    """What the gate said of an engine with one planted fault.

    Attributes:
        fault: what was planted.
        group: see ``exporter.planted.Group``.
        engine: the format that it was planted in, or ``EVERY_ENGINE``.
        outcome: ``hidden`` is a fault that the dtype's own rounding hides and that is rejected in
            float32; ``accepted`` means that the gate can be fooled; ``not run`` is no rejection.
        by: the budget that rejected it with the largest margin, or what refused the artifact.
        measured: under that budget; None where it was none.
        limit: of that budget.
        margin: how many times over the limit.
        exactly: exact checks that rejected it, and what they say.
        rules: every check that rejected it; with one of them alone, nothing else would have.
        note: why it does not apply or was not run, or what hides it.
    """

    fault: str
    group: str
    engine: str
    outcome: Literal["rejected", "accepted", "hidden", "does not apply", "not run"]
    by: str = ""
    measured: float | None = None
    limit: float | None = None
    margin: float | None = None
    exactly: list[str] = []
    rules: list[str] = []
    note: str = ""


class Report(msgspec.Struct, frozen=True):
    """``parity.json``.

    Attributes:
        schema_version: of this file.
        artifact: its name.
        passed: every measured engine, at least one, and no planted fault was accepted.
        synthetic: the weights are random.
        architecture: its name, and its depth.
        dtype: of the engines.
        layers, pool: exported.
        seed: of the random packs.
        packs: proteins and tokens of each.
        reference: what the oracle was, and which LayerNorm it used.
        environment: versions, CPU, GPU.
        budgets: the table that applied.
        engines: one verdict each.
        faults: planted ones; empty if none were asked for.
    """

    schema_version: int
    artifact: str
    passed: bool
    synthetic: bool
    architecture: str
    num_layers: int
    dtype: str
    layers: list[int]
    pool: str | None
    seed: int
    packs: dict[str, tuple[int, int]]
    reference: dict[str, str]
    environment: dict[str, str]
    budgets: list[Budget]
    engines: list[EngineVerdict]
    faults: list[FaultVerdict] = []


class ParityError(ExportError):
    """A built engine differs from eager fair-esm by more than its budget; nothing is published.

    Attributes:
        report: of all engines that were judged, or None where none was.
    """

    def __init__(self, message: str, report: Report | None = None):
        super().__init__(message)
        self.report = report


def is_passed(engines: list[EngineVerdict], faults: list[FaultVerdict]) -> bool:
    """Whether something was measured, all of it passed, and so did the proof if there was one."""
    measured = [verdict for verdict in engines if verdict.status != "not measured"]
    return (
        bool(measured)
        and all(verdict.status == "passed" for verdict in measured)
        and all(fault.outcome != "accepted" for fault in faults)
        and (not faults or any(fault.outcome == "rejected" for fault in faults))
    )


def encode(report: Report) -> bytes:
    """As JSON for people and machines."""
    text = msgspec.json.encode(report, order="deterministic")
    return msgspec.json.format(text, indent=1) + b"\n"


def read(path: Path) -> Report:
    """Reads and validates a report; one of schema 2 or 3 is upgraded.

    Raises:
        ExportError: missing, damaged, or of another schema version.
    """
    try:
        fields = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        if fields.get("schema_version") == 2:
            fields = _from_2(fields)
        if fields.get("schema_version") == 3:  # 4 may say of faults that they were not run
            fields = fields | {"schema_version": 4}
        if (version := fields.get("schema_version")) != SCHEMA_VERSION:
            raise ExportError(
                f"{path} has schema version {version}, expected {SCHEMA_VERSION}. "
                "Write it again with this version's 'esm2-export verify --report'"
            )
        return msgspec.convert(fields, Report)
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is not a parity report: {error}") from None


def _from_2(fields: dict[str, Any]) -> dict[str, Any]:
    """3 says of each row what the tensor has rows for, and has ``EMBEDDING`` for a phrase."""
    for verdict in fields["engines"]:
        for row in verdict["rows"]:
            row["rows"] = "proteins" if row["tensor"].startswith("pooled") else "tokens"
            if row["tensor"] == "pooled by the runtime":
                row["tensor"] = EMBEDDING
    return fields | {"schema_version": 3}


def grown_errors(new: Report, old: Report) -> list[str]:
    """Which errors grew by more than ``MAX_GROWTH`` since ``old``, in sentences.

    Raises:
        ExportError: the two are not of the same model, dtype, packs and engines.
    """
    differing = [
        f"{what} {getattr(new, what)!r} instead of {getattr(old, what)!r}"
        for what in ("architecture", "dtype", "seed", "layers", "pool", "packs")
        if getattr(new, what) != getattr(old, what)
    ]
    digest = "weights digest"
    if new.reference.get(digest) != old.reference.get(digest):
        differing.append("other weights")
    missing = {v.engine for v in old.engines} - {v.engine for v in new.engines}
    differing += [f"no engine {name!r}" for name in sorted(missing)]
    if differing:
        raise ExportError(f"the reports cannot be compared: this one has {', '.join(differing)}")
    now = {
        (verdict.engine, row.pack, row.tensor): row.engine.relative_l2
        for verdict in new.engines
        for row in verdict.rows
        if row.engine
    }
    grown = []
    for verdict in old.engines:
        for row in verdict.rows:
            place = f"{verdict.engine}: {row.tensor} of pack {row.pack!r}"
            error = now.get((verdict.engine, row.pack, row.tensor))
            if row.engine is None:
                continue
            before = row.engine.relative_l2
            if error is None:
                grown.append(f"{place}: relative L2 {before:.2e} before, not compared now")
            elif error > MAX_GROWTH * before:
                times = f"{error / before:.2f} x the" if before else "more than the"
                grown.append(f"{place}: relative L2 {error:.2e}, {times} {before:.2e} of before")
    return grown
