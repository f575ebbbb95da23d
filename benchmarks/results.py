"""What was measured, as it is written to JSON; nothing here is derived."""

from pathlib import Path
from typing import Literal

import msgspec


class Setting(msgspec.Struct, frozen=True):
    """How a contender is run: batches at once (the cores are shared), tokens of a batch."""

    concurrency: int
    max_tokens: int


class Trial(msgspec.Struct, frozen=True):
    """One setting that a search tried."""

    setting: Setting
    tokens_s: list[float]
    peak_mb: float | None


class Timing(msgspec.Struct):
    """One contender on one workload: by round, tokens/s and the relative L2 error after it."""

    setting: Setting
    tokens_s: list[float] = []
    relative_l2: list[float] = []
    search: list[Trial] = []


class WorkloadResult(msgspec.Struct):
    """All contenders on one workload; the limit of each round from its matrix rate (FLOP/s)."""

    description: str
    proteins: int
    tokens: int
    flops: float
    matrix_rate: list[float] = []
    timings: dict[str, Timing] = {}


class Latency(msgspec.Struct):
    """Of one protein: milliseconds of every run, by contender."""

    tokens: int
    runs_ms: dict[str, list[float]] = {}


class Scaling(msgspec.Struct):
    """Tokens/s on the mixed workload with one thread and with all cores, pair by pair."""

    one_thread: list[float] = []
    all_cores: list[float] = []


class GrowthPoint(msgspec.Struct, frozen=True):
    """One stream through the runner in a fresh process."""

    tokens: int
    proteins: int
    seconds: float
    peak_mb: float


class Growth(msgspec.Struct):
    """Streams of growing length through one engine."""

    contender: str
    points: list[GrowthPoint] = []


class KernelTime(msgspec.Struct, frozen=True):
    """A kernel in one forward: how often it was launched, and how long all of them took."""

    name: str
    calls: int
    milliseconds: float


class Contender(msgspec.Struct):
    """Who ran, and what its start took.

    Attributes:
        label: for people.
        kind: an engine of the artifact, or somebody else's way to run ESM-2.
        max_relative_l2: a larger error is wrong.
        in_headline: it does what the peers do, in a dtype like theirs.
        versions: of its packages.
        instructions: the processor's set that its kernels use, where it says so.
        not_run: why, or empty.
        load_s: importing its libraries and loading the model.
        first_embedding_s: from the start of the process.
        peak_mb: of its process, up to its best setting on the first workload.
        kernels: of one forward on a card, at the largest pack, the slowest first.
    """

    label: str
    kind: Literal["engine", "peer"]
    max_relative_l2: float
    in_headline: bool = True
    versions: dict[str, str] = {}
    instructions: str = ""
    not_run: str = ""
    load_s: float | None = None
    first_embedding_s: float | None = None
    peak_mb: float | None = None
    kernels: list[KernelTime] = []


class ModelResult(msgspec.Struct):
    """One model; ``matrix_product`` is what the matrix rates are of."""

    artifact: str
    architecture: str
    synthetic: bool
    matrix_product: str = ""
    contenders: dict[str, Contender] = {}
    workloads: dict[str, WorkloadResult] = {}
    latency: Latency | None = None
    scaling: dict[str, Scaling] = {}
    growth: Growth | None = None


class Run(msgspec.Struct):
    """One run, all side by side.

    Attributes:
        plan: its name in ``benchmarks/plans.py``.
        date: when it began.
        machine: for people.
        cores: that the process could use.
        python: version.
        setup_s: environments and conversions; not part of ``measured_s``.
        measured_s: the rest.
        models: in the order in which they were measured.
        instructions: the processor's vector instructions, for people.
        load: of the machine over the minute before the run, in processes; 0 is idle.
    """

    plan: str
    date: str
    machine: str
    cores: int
    python: str
    setup_s: float = 0.0
    measured_s: float = 0.0
    models: list[ModelResult] = []
    instructions: str = ""
    load: float | None = None


def write(run: Run, path: Path) -> None:
    """As JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")


def read(path: Path) -> Run:
    """What ``write`` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Run)
