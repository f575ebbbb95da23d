"""What is done, as data: models, jobs, and the order in which they matter."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.gpu_check.attention import KERNELS
from benchmarks.gpu_check.engines import ENGINES, of_device, why_not
from benchmarks.gpu_check.results import Kind, Step
from benchmarks.results import ModelResult
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
# By these and by a user's own, before anything else, the first dtype of PyTorch's engines.
FIRST_MODELS = ("8M", "650M")
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
CARD = Model("card", "synthetic", "")
# A model's benchmark after its first one.
OTHERS = "other engines"


class Job(msgspec.Struct, frozen=True):
    """What one process does.

    Attributes:
        kind: ``matrix rate`` measures the card; ``attention`` judges a kernel; ``gate`` builds,
            judges and watches an engine; ``c++`` runs some in a program; ``benchmark`` measures.
        model: whose.
        device: ``cuda`` or ``cpu``.
        dtype: of a gate, and of C++.
        engines: of a gate, or the kernel: one. Of C++: which. Of a benchmark: which, each with its
            dtype after a colon once it has passed.
        pack_tokens: of a benchmark: sizes of packs and padded batches that are tried.
        seconds: of a benchmark: for its rounds.
        dtypes: of a kernel: in which it is judged.
        label: of a benchmark: what tells it from the model's first.
    """

    kind: Literal["matrix rate", "attention", "gate", "c++", "benchmark"]
    model: Model
    device: str
    dtype: str = ""
    engines: tuple[str, ...] = ()
    pack_tokens: tuple[int, ...] = ()
    seconds: float = 0.0
    dtypes: tuple[str, ...] = ()
    label: str = ""

    @property
    def name(self) -> str:
        """For people, and for files."""
        of_one = self.engines if self.kind in ("attention", "gate") else ()
        parts = (self.kind, self.model.name, self.dtype, *of_one, self.label)
        return "-".join(filter(None, parts)).replace(" ", "-")

    @property
    def lane(self) -> tuple[object, ...]:
        """Of jobs that share it one runs at a time: they would ask eager fair-esm the same."""
        if self.kind != "gate":
            return (self.name,)
        return self.model, ENGINES[self.engines[0]].is_compiled

    def steps(self) -> list[Step]:
        """What it is to report."""
        if self.kind == "attention":
            return [
                Step("attention", self.model.name, dtype, kernel)
                for kernel in self.engines
                for dtype in self.dtypes
            ]
        if self.kind == "gate":
            return [
                Step(kind, self.model.name, self.dtype, engine)
                for engine in self.engines
                for kind in kinds_of(engine)
            ]
        if self.kind == "c++":
            return [Step("c++", self.model.name, self.dtype, engine) for engine in self.engines]
        return [Step(self.kind, self.model.name, engine=self.label)]


class Stage(msgspec.Struct, frozen=True):
    """Jobs, the most important first, and what they may take of the check's time.

    Attributes:
        jobs: all of them benchmarks, or none.
        until: the share of the time after which none of them goes on.
        at_most: of benchmarks: the share that one is given at most.
        is_alone: one at a time, for they time the card.
    """

    jobs: tuple[Job, ...]
    until: float
    at_most: float = 1.0
    is_alone: bool = False


def kinds_of(engine: str) -> tuple[Kind, ...]:
    """What the job of a gate reports of an engine."""
    graphs: tuple[Kind, ...] = ("graphs",) if ENGINES[engine].is_run_by_torch else ()
    return ("gate", "synchronisation", *graphs)


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
    steps = [step for job in kernels_of(dtypes, device) for step in job.steps()]
    steps[:0] = Job("matrix rate", CARD, device).steps()
    for model, dtype in _gated(models, dtypes):
        for engine in of_device(device):
            reason = why_not(engine, dtype, device)
            steps += [
                Step(kind, model.name, dtype, engine, reason=reason) for kind in kinds_of(engine)
            ]
    benchmarks = [job for jobs in benchmarks_of(models, (), device) for job in jobs]
    for job in [*cpp_of(models, dtypes, device), *benchmarks]:
        steps += job.steps()
    for step in steps:
        step.reason = step.reason or NOT_REACHED
    return steps


def stages_of(
    models: Sequence[Model], dtypes: Sequence[str], pack_tokens: Sequence[int], device: str
) -> list[Stage]:
    """Everything in the order in which it matters, what may crash or wait last."""
    ranked: dict[str, list[Job]] = {"first": [], "next": [], "rest": [], "tuned": []}
    for job in gates_of(models, dtypes, device):
        ranked[_rank(job, dtypes)].append(job)
    first, then, rest, tuned = ranked.values()
    others = (*then, *cpp_of(models, dtypes, device), *rest)
    headline, benchmarks, of_tuned = benchmarks_of(models, pack_tokens, device)
    before = 0.85 if tuned else 1.0
    return [
        Stage((Job("matrix rate", CARD, device),), 0.5 * before, is_alone=True),
        Stage((*kernels_of(dtypes, device), *first), 0.5 * before),
        Stage(headline, before, at_most=0.2, is_alone=True),
        Stage(others, 0.8 * before),
        Stage(benchmarks, before, is_alone=True),
        Stage(tuple(tuned), 0.95, is_alone=True),
        Stage(of_tuned, 1.0, is_alone=True),
    ]


def kernels_of(dtypes: Sequence[str], device: str) -> list[Job]:
    """Every kernel of the op, each by itself: after some errors a process cannot use the card."""
    ordered = tuple(sorted(dtypes, key=DTYPES.index))
    return [
        Job("attention", OP, device, dtypes=ordered, engines=(kernel,))
        for kernel in KERNELS[device]
    ]


def gates_of(models: Sequence[Model], dtypes: Sequence[str], device: str) -> list[Job]:
    """The most important first, one for each engine that can run."""
    return [
        Job("gate", model, device, dtype, (engine,))
        for model, dtype in _gated(models, dtypes)
        for engine in of_device(device)
        if not why_not(engine, dtype, device)
    ]


def cpp_of(models: Sequence[Model], dtypes: Sequence[str], device: str) -> tuple[Job, ...]:
    """On a card, the engines that a program in C++ can run; on CPUs tests do it."""
    if device == "cpu":
        return ()
    (model, dtype), *_ = _gated(models, dtypes)
    engines = tuple(
        name
        for name in of_device(device)
        if ENGINES[name].is_run_by_torch and not why_not(name, dtype, device)
    )
    return (Job("c++", model, device, dtype, engines),)


def benchmarks_of(
    models: Sequence[Model], pack_tokens: Sequence[int], device: str
) -> tuple[tuple[Job, ...], tuple[Job, ...], tuple[Job, ...]]:
    """The headline with PyTorch's engines; the other engines and models; those that are tuned."""
    names = of_device(device)
    tuned = tuple(name for name in names if ENGINES[name].is_tuned)
    others = tuple(name for name in names if name not in tuned)
    torchs = tuple(name for name in others if ENGINES[name].is_run_by_torch)

    def job(model: Model, engines: tuple[str, ...], label: str = "") -> Job:
        sizes = tuple(pack_tokens)
        return Job("benchmark", model, device, engines=engines, pack_tokens=sizes, label=label)

    ordered = _ordered(models, BENCHMARK_ORDER)
    later = [job(ordered[0], others, OTHERS), *(job(model, others) for model in ordered[1:])]
    of_tuned = [job(model, tuned, " ".join(tuned)) for model in ordered if tuned]
    return (job(ordered[0], torchs),), tuple(later), tuple(of_tuned)


def with_passed(job: Job, steps: Iterable[Step]) -> Job:
    """A benchmark with each engine in the first of ``DTYPES`` that it passed the gate in.

    Those that another benchmark of the model has measured are left out.
    """
    of_model = [step for step in steps if step.model == job.model.name]
    passed = {(s.engine, s.dtype) for s in of_model if (s.kind, s.status) == ("gate", "passed")}
    measured = {name for step in of_model if step.benchmark for name in _seen(step.benchmark)}
    engines = [
        f"{engine}:{dtype}"
        for engine in job.engines
        for dtype in [dtype for dtype in DTYPES if (engine, dtype) in passed][:1]
        if engine not in measured
    ]
    return msgspec.structs.replace(job, engines=tuple(engines))


def _seen(benchmark: ModelResult) -> Iterator[str]:
    """Contenders that were timed, or could not be."""
    for name, about in benchmark.contenders.items():
        timings = [w.timings[name] for w in benchmark.workloads.values() if name in w.timings]
        if about.not_run or any(timing.tokens_s for timing in timings):
            yield name


def _rank(job: Job, dtypes: Sequence[str]) -> Literal["first", "next", "rest", "tuned"]:
    """Of a gate: which stage it is for."""
    engine = ENGINES[job.engines[0]]
    if engine.is_tuned:
        return "tuned"
    if job.model.name in NAMES and job.model.name not in FIRST_MODELS:
        return "rest"
    if engine.is_run_by_torch:
        return "first" if job.dtype == min(dtypes, key=DTYPES.index) else "rest"
    return "next" if job.dtype in HALF else "rest"


def _gated(models: Sequence[Model], dtypes: Sequence[str]) -> Iterator[tuple[Model, str]]:
    for model in _ordered(models, GATE_ORDER):
        for dtype in sorted(dtypes, key=DTYPES.index):
            yield model, dtype


def _ordered(models: Sequence[Model], order: Sequence[str]) -> list[Model]:
    """Models that are not in ``order`` come first: a user asked for them."""
    return sorted(models, key=lambda model: order.index(model.name) if model.name in order else -1)
