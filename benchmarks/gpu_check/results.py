"""What a check found, as ``gpu-report.json`` holds it; nothing here is derived."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.results import ModelResult

FILE_NAME = "gpu-report.json"
SCHEMA_VERSION = 3

Status = Literal["passed", "failed", "not run"]
Kind = Literal[
    "matrix rate", "attention", "gate", "synchronisation", "graphs", "c++", "benchmark"
]  # fmt: skip


class Rates(msgspec.Struct, frozen=True):
    """FLOP/s of matrix products.

    Attributes:
        product: dtype and size, for people.
        cold: when the check began.
        warm: after ``burn_s`` of nothing but products.
        burn_s: seconds.
    """

    product: str
    cold: float
    warm: float
    burn_s: float


class Parity(msgspec.Struct, frozen=True):
    """What the gate measured of one engine, over all outputs of all packs."""

    packs: int
    worst_relative_l2: float
    worst_ratio_to_eager: float
    library: str
    device: str
    attention: str


class Kernel(msgspec.Struct, frozen=True):
    """What was measured of one attention kernel, over proteins of every head dim that it takes.

    Attributes:
        name: with its version.
        head_dims: how many.
        worst_relative_l2: of a protein, against float64.
        worst_ratio_to_standard: over the error of standard attention in the same dtype.
    """

    name: str
    head_dims: int
    worst_relative_l2: float
    worst_ratio_to_standard: float


class Step(msgspec.Struct):
    """One thing that was to be done.

    Attributes:
        kind: what.
        model: ``8M``, ``650M``, ... or the name of a checkpoint; of a kernel, the op; ``card``.
        dtype: of the engine; empty for a benchmark.
        engine: its format, or the kernel's name; of a benchmark, which engines, unless it is the
            model's first.
        status: ``not run`` always has a reason.
        reason: empty if it passed.
        seconds: that its process took, or the part of it that was this step's.
        rates: of the matrix rate.
        kernel: of an attention kernel that ran.
        parity: of a gate that compared something.
        benchmark: of a benchmark that measured something.
    """

    kind: Kind
    model: str
    dtype: str = ""
    engine: str = ""
    status: Status = "not run"
    reason: str = ""
    seconds: float = 0.0
    rates: Rates | None = None
    kernel: Kernel | None = None
    parity: Parity | None = None
    benchmark: ModelResult | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells it from the others."""
        return self.kind, self.model, self.dtype, self.engine

    @property
    def name(self) -> str:
        """For people, without the kind."""
        return " ".join(filter(None, (self.model, self.dtype, self.engine)))


# Receives each step as soon as it is known.
Emit = Callable[[Step], None]


class Machine(msgspec.Struct, frozen=True):
    """Where it ran; ``device`` is ``cpu`` for a rehearsal."""

    device: str
    name: str
    compute_capability: str
    memory_gb: float
    driver: str
    cpu: str
    versions: dict[str, str]


class Report(msgspec.Struct):
    """``gpu-report.json``.

    Attributes:
        schema_version: of this file.
        date: when it began, UTC.
        machine: the card and the versions.
        minutes: that it was given.
        took_minutes: that it took.
        steps: everything that was planned, in order.
    """

    schema_version: int
    date: str
    machine: Machine
    minutes: float
    took_minutes: float = 0.0
    steps: list[Step] = []


def reason_of(error: BaseException) -> str:
    """What a step says of an error: its class and its first line."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"


def write(report: Report, folder: Path) -> Path:
    """Writes ``gpu-report.json``."""
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=1)
    return replace(folder / FILE_NAME, encoded + b"\n")


def replace(path: Path, content: bytes) -> Path:
    """Writes a file that is whole at any moment: a check may be killed in this one."""
    aside = path.with_name(f".{path.name}")
    aside.write_bytes(content)
    return aside.replace(path)


def read(path: Path) -> Report:
    """What ``write`` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Report)
