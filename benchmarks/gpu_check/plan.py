"""What is done, as data: models, jobs, and the order in which they matter."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.gpu_check.attention import KERNELS
from benchmarks.gpu_check.engines import ENGINES, of_device, why_not
from benchmarks.gpu_check.results import Step
from exporter.model.reference import SourceKind

NAMES = {
    "8M": "esm2_t6_8M_UR50D",
    "35M": "esm2_t12_35M_UR50D",
    "150M": "esm2_t30_150M_UR50D",
    "650M": "esm2_t33_650M_UR50D",
    "3B": "esm2_t36_3B_UR50D",
}
# A gate that the smallest model passes shows that the machine is set up; the headline comes next.
GATE_ORDER = ("8M", "650M", "35M", "150M", "3B")
BENCHMARK_ORDER = ("650M", "3B", "8M", "150M", "35M")
HALF = ("bfloat16", "float16")
# Also the order in which a benchmark takes an engine's dtype.
DTYPES = (*HALF, "float32")

NOT_REACHED = "the check ended before it"


class Model(msgspec.Struct, frozen=True):
    """A short name, and where its weights come from (see ``WeightsSource``)."""

    name: str
    kind: SourceKind
    value: str


OP = Model("op", "synthetic", "")


class Job(msgspec.Struct, frozen=True):
    """What one process does.

    Attributes:
        kind: ``attention`` judges kernels; ``gate`` builds, judges and watches; ``benchmark``
            measures.
        model: whose.
        device: ``cuda`` or ``cpu``.
        dtype: of a gate.
        engines: of a gate, or of kernels: which. Of a benchmark: which, each with its dtype after a
            colon.
        pack_tokens: of a benchmark: sizes of packs and padded batches that are tried.
        seconds: of a benchmark: for its rounds.
        dtypes: of kernels: in which each is judged.
    """

    kind: Literal["attention", "gate", "benchmark"]
    model: Model
    device: str
    dtype: str = ""
    engines: tuple[str, ...] = ()
    pack_tokens: tuple[int, ...] = ()
    seconds: float = 0.0
    dtypes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For people, and for files."""
        gated = self.engines if self.kind == "gate" else ()
        return "-".join(filter(None, (self.kind, self.model.name, self.dtype, *gated)))

    def steps(self) -> list[Step]:
        """What it is to report."""
        if self.kind == "benchmark":
            return [Step("benchmark", self.model.name)]
        if self.kind == "attention":
            return [
                Step("attention", self.model.name, dtype, kernel)
                for kernel in self.engines
                for dtype in self.dtypes
            ]
        return [
            Step(kind, self.model.name, self.dtype, engine)
            for kind in ("gate", "synchronisation")
            for engine in self.engines
        ]


def models_of(names: Iterable[str]) -> list[Model]:
    """From ``8M`` and the like, or paths of checkpoints.

    Raises:
        ValueError: one that is neither.
    """
    models = []
    for name in names:
        if name in NAMES:
            models.append(Model(name, "synthetic", NAMES[name]))
        elif Path(name).exists():
            models.append(Model(Path(name).stem, "checkpoint", str(Path(name).resolve())))
        else:
            raise ValueError(f"models are {', '.join(NAMES)} or a checkpoint's path, got {name!r}")
    return models


def steps_of(models: Sequence[Model], dtypes: Sequence[str], device: str) -> list[Step]:
    """Everything that a check is to report, not run yet; engines that cannot run say why."""
    steps = attention_of(dtypes, device).steps()
    for step in steps:
        step.reason = NOT_REACHED
    for model, dtype in _gated(models, dtypes):
        for engine in of_device(device):
            reason = why_not(engine, dtype, device) or NOT_REACHED
            steps += [
                Step(kind, model.name, dtype, engine, reason=reason)
                for kind in ("gate", "synchronisation")
            ]
    names = [model.name for model in _ordered(models, BENCHMARK_ORDER)]
    return steps + [Step("benchmark", name, reason=NOT_REACHED) for name in names]


def attention_of(dtypes: Sequence[str], device: str) -> Job:
    """Every kernel of the op; no model takes part."""
    ordered = tuple(sorted(dtypes, key=DTYPES.index))
    return Job("attention", OP, device, dtypes=ordered, engines=KERNELS[device])


def gates_of(models: Sequence[Model], dtypes: Sequence[str], device: str) -> list[Job]:
    """The most important first, each with the engines that can run."""
    jobs = []
    for model, dtype in _gated(models, dtypes):
        engines = [name for name in of_device(device) if not why_not(name, dtype, device)]
        # A compiler takes its minutes on the CPU, while another process computes the answers of
        # eager fair-esm.
        for group in (
            tuple(engine for engine in engines if not ENGINES[engine].is_compiled),
            tuple(engine for engine in engines if ENGINES[engine].is_compiled),
        ):
            if group:
                jobs.append(Job("gate", model, device, dtype, group))
    return jobs


def benchmarks_of(
    models: Sequence[Model], pack_tokens: Sequence[int], device: str, steps: Iterable[Step]
) -> list[Job]:
    """One of each model: every engine in the first of ``DTYPES`` that it passed the gate in."""
    passed = {
        (step.model, step.engine, step.dtype)
        for step in steps
        if step.kind == "gate" and step.status == "passed"
    }
    jobs = []
    for model in _ordered(models, BENCHMARK_ORDER):
        engines = []
        for engine in of_device(device):
            dtypes = [dtype for dtype in DTYPES if (model.name, engine, dtype) in passed]
            engines += [f"{engine}:{dtype}" for dtype in dtypes[:1]]
        jobs.append(
            Job(
                "benchmark",
                model,
                device,
                engines=tuple(engines),
                pack_tokens=tuple(pack_tokens),
            )
        )
    return jobs


def _gated(models: Sequence[Model], dtypes: Sequence[str]) -> Iterator[tuple[Model, str]]:
    for model in _ordered(models, GATE_ORDER):
        for dtype in sorted(dtypes, key=DTYPES.index):
            yield model, dtype


def _ordered(models: Sequence[Model], order: Sequence[str]) -> list[Model]:
    """Models that are not in ``order`` come first: a user asked for them."""
    return sorted(models, key=lambda model: order.index(model.name) if model.name in order else -1)
