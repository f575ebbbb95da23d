"""Passed or failed: an engine's error on every output of every pack against its budgets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from tqdm import tqdm

from exporter.parity import internals
from exporter.parity.budgets import OF_TASKS, Budget, budgets_for
from exporter.parity.metrics import UNBOUNDED, Floats, TensorError, compare, ratio
from exporter.parity.oracle import Answers
from exporter.parity.packs import Pack, as_batch
from exporter.parity.task import Answer, TaskMetrics, compare_tasks
from runtime.engine import Engine
from runtime.errors import Esm2Error
from runtime.manifest import Manifest, ParityEntry
from runtime.selftest import RUNTIME_POOLED, all_outputs

# The names of the checks that are exact: there is no number between right and wrong.
EVERYTHING_COMPARED = "every output is there, finite and comparable"
TOKENS = "token ids and boundaries are fair-esm's"
INTERNALS = "position_ids, cu_seqlens and max_seqlen inside the graph"
WEIGHTS = "weights are the checkpoint's, bit by bit"


class Row(msgspec.Struct, frozen=True):
    """One output tensor of one pack.

    Attributes:
        pack: its name.
        tensor: ``logits``, ``representations.<k>``, ``pooled`` or ``pooled by the runtime``.
        longest: tokens of the longest protein of the pack.
        engine: the engine's error, or None where it gave nothing comparable.
        eager: the error of eager fair-esm in the engine's dtype, or None where that overflows.
        problem: why nothing was compared; empty if it was.
    """

    pack: str
    tensor: str
    longest: int
    engine: TensorError | None
    eager: TensorError | None
    problem: str = ""

    @property
    def ratio(self) -> float:
        """The engine's relative L2 over eager's own, whole tensor or worst protein."""
        if self.engine is None or self.eager is None:
            return UNBOUNDED
        errors = [
            [error.relative_l2, error.worst_protein_relative_l2]
            for error in (self.engine, self.eager)
        ]
        return float(ratio(*np.array(errors)).max())

    def measured(self, budget: Budget) -> float | None:
        """The quantity that ``budget`` limits, or None where it is not about this tensor."""
        if self.engine is None or self.eager is None:
            return None
        pooled = self.tensor.startswith("pooled")
        match budget.quantity:
            case "ratio":
                return self.ratio
            case "relative_l2":
                return self.engine.relative_l2
            case "residue_cosine_p01":
                return None if pooled else self.engine.cosine_p01
            case "pooled_cosine_min":
                return self.engine.cosine_min if pooled else None
        return None


class Check(msgspec.Struct, frozen=True):
    """One rule at its worst place.

    Attributes:
        name: the budget's, or one of the exact checks.
        passed: everywhere.
        measured: the worst value, or None for an exact check.
        limit: of the budget.
        sense: ``at most``, ``at least`` or ``exact``.
        margin: how many times over the limit; above 1 it failed. None for an exact check.
        where: the place of the worst value, or what is wrong.
    """

    name: str
    passed: bool
    measured: float | None
    limit: float | None
    sense: Literal["at most", "at least", "exact"]
    margin: float | None
    where: str


class EngineVerdict(msgspec.Struct, frozen=True):
    """The verdict on one engine.

    Attributes:
        engine: its format.
        status: ``not measured`` is no pass.
        reason: why it was not measured, or the first failure in one line; empty if it passed.
        library, device, attention: where and how it ran.
        checks: every rule, at its worst place.
        tasks: task-level metrics, or None where nothing could be compared.
        eager_tasks: the same of eager fair-esm in the engine's dtype, for comparison.
        rows: every output of every pack.
    """

    engine: str
    status: Literal["passed", "failed", "not measured"]
    reason: str
    library: str = ""
    device: str = ""
    attention: str = ""
    checks: list[Check] = []
    tasks: TaskMetrics | None = None
    eager_tasks: TaskMetrics | None = None
    rows: list[Row] = []

    @property
    def worst_relative_l2(self) -> float:
        """Of all outputs of all packs."""
        errors = [row.engine.relative_l2 if row.engine else UNBOUNDED for row in self.rows]
        return max(errors, default=UNBOUNDED)

    @property
    def worst_ratio_to_eager(self) -> float:
        """Of all outputs of all packs."""
        return max((row.ratio for row in self.rows), default=UNBOUNDED)

    def summary(self) -> ParityEntry:
        """For the manifest."""
        return ParityEntry(
            passed=self.status == "passed",
            worst_relative_l2=self.worst_relative_l2,
            worst_ratio_to_eager=self.worst_ratio_to_eager,
            packs=len({row.pack for row in self.rows}),
        )


def judge(
    engine: Engine,
    folder: Path,
    manifest: Manifest,
    packs: Mapping[str, Pack],
    oracle: Mapping[str, Answers],
    eager: Mapping[str, Answers],
    weights: Check | None = None,
) -> EngineVerdict:
    """Runs an engine on every pack and compares every output.

    Args:
        engine: loaded from ``folder``.
        folder: the artifact.
        manifest: of it.
        packs: what to run, by name.
        oracle: eager fair-esm in float64 on each.
        eager: eager fair-esm in the engine's dtype on each.
        weights: the verdict on the weights that the engine reads, if they were compared.
    """
    rows: list[Row] = []
    tokens: list[str] = []
    inside: list[str] = []
    pairs, eager_pairs = [], []
    for name, pack in tqdm(packs.items(), desc=engine.spec.format, leave=False, disable=None):
        truth = oracle[name]
        try:
            batch = as_batch(pack)
            observe = internals.OBSERVERS[engine.spec.format]
            with observe(folder, manifest, batch) as seen:
                outputs = engine.run(batch)
            tensors = all_outputs(engine, outputs, batch, manifest)
        except Esm2Error as error:
            rows.append(Row(name, "all outputs", truth.max_seqlen, None, None, str(error)))
            continue
        if not (
            np.array_equal(batch.input_ids, truth.input_ids)
            and np.array_equal(batch.cu_seqlens, truth.cu_seqlens)
        ):
            tokens.append(name)
        wrong = internals.problems(seen, truth, manifest.architecture.num_layers)
        inside += [f"pack {name!r}: {problem}" for problem in wrong]
        pack_rows = _rows(name, tensors, truth, eager[name], manifest)
        rows += pack_rows
        if all(row.engine for row in pack_rows):
            pooled = tensors.get("pooled", tensors[RUNTIME_POOLED])
            expected = _answer(truth)
            pairs.append((Answer(truth.input_ids, outputs.logits, pooled), expected))
            eager_pairs.append((_answer(eager[name]), expected))
    tasks = compare_tasks(pairs) if pairs else None
    budgets = budgets_for(engine.spec.dtype, manifest.architecture.num_layers)
    incomparable = [
        f"{row.tensor} of pack {row.pack!r}: {row.problem}" for row in rows if row.problem
    ]
    checks = [
        exact(EVERYTHING_COMPARED, incomparable if rows else ["nothing was compared"]),
        exact(TOKENS, [f"pack {name!r}" for name in tokens]),
        exact(INTERNALS, inside),
        *([weights] if weights else []),
        *(_worst(budget, rows, tasks) for budget in budgets),
    ]
    failed = [check for check in checks if not check.passed]
    return EngineVerdict(
        engine=engine.spec.format,
        status="failed" if failed else "passed",
        reason=describe(failed[0]) if failed else "",
        library=engine.spec.library,
        device=engine.spec.device,
        attention=engine.spec.attention,
        checks=checks,
        tasks=tasks,
        eager_tasks=compare_tasks(eager_pairs) if eager_pairs else None,
        rows=rows,
    )


def exact(name: str, problems: Sequence[str]) -> Check:
    """A check that has no number: passed if there is no problem."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    where = problems[0] + more if problems else ""
    return Check(name, not problems, None, None, "exact", None, where)


def describe(check: Check) -> str:
    """One line for people."""
    if check.measured is None:
        return f"{check.name}: {check.where}"
    return (
        f"{check.name}: {check.measured:.3g} in {check.where}, expected {check.sense} "
        f"{check.limit:g}"
    )


def _worst(budget: Budget, rows: Sequence[Row], tasks: TaskMetrics | None) -> Check:
    if budget.quantity == "absolute_ratio":
        found = _absolute_ratios(rows)
    elif budget.quantity in OF_TASKS:
        value = getattr(tasks, budget.quantity, None)
        found = [] if value is None or tasks is None else [(value, _compared(budget, tasks))]
    else:
        measured = ((row.measured(budget), f"{row.tensor} of pack {row.pack!r}") for row in rows)
        found = [(value, where) for value, where in measured if value is not None]
    if not found:
        return Check(budget.name, False, None, budget.limit, budget.sense, None, "not compared")
    value, where = max(found, key=lambda pair: budget.margin(pair[0]))
    passed = all(budget.is_met(measured) for measured, _ in found)
    return Check(
        budget.name, passed, value, budget.limit, budget.sense, budget.margin(value), where
    )


def _compared(budget: Budget, tasks: TaskMetrics) -> str:
    match budget.quantity:
        case "top1_agreement_confident":
            return f"{tasks.confident_positions} positions"
        case "jensen_shannon_mean":
            return "every token"
    return f"{tasks.proteins} proteins"


def _absolute_ratios(rows: Sequence[Row]) -> list[tuple[float, str]]:
    """Of each tensor, over all packs: the largest error of one pack is a matter of luck."""
    compared = [row for row in rows if row.engine and row.eager]
    found = []
    for tensor in dict.fromkeys(row.tensor for row in compared):
        errors = [(row.engine, row.eager, row.pack) for row in compared if row.tensor == tensor]
        engine, pack = max((error.worst_absolute, pack) for error, _, pack in errors)
        eager = max(error.worst_absolute for _, error, _ in errors)
        found.append((float(ratio(engine, eager)), f"{tensor} of pack {pack!r}"))
    return found


def _rows(
    name: str, got: dict[str, Floats], truth: Answers, eager: Answers, manifest: Manifest
) -> list[Row]:
    expected, eager_got = _expected(truth, manifest), _expected(eager, manifest)
    # NumPy has no bfloat16, so engines give that as float32.
    dtype = np.dtype("float32" if manifest.dtype == "bfloat16" else manifest.dtype)
    rows = []
    for tensor, values in expected.items():
        one_row_each = tensor.startswith("pooled")
        bounds = np.arange(len(values) + 1) if one_row_each else truth.cu_seqlens
        row = Row(name, tensor, truth.max_seqlen, None, None)
        try:
            eager_error = compare(eager_got[tensor], values, bounds)
        except ValueError as error:
            problem = f"eager fair-esm in this dtype gives {error}, so there is no measure"
            rows.append(msgspec.structs.replace(row, problem=problem))
            continue
        try:
            if tensor not in got:
                raise ValueError(f"the engine has no output {tensor!r}")
            if got[tensor].dtype != dtype:
                raise ValueError(f"dtype {got[tensor].dtype}, expected {dtype}")
            engine_error = compare(got[tensor], values, bounds)
        except ValueError as error:
            rows.append(msgspec.structs.replace(row, eager=eager_error, problem=str(error)))
            continue
        rows.append(msgspec.structs.replace(row, engine=engine_error, eager=eager_error))
    return rows


def _expected(answers: Answers, manifest: Manifest) -> dict[str, Floats]:
    tensors = answers.outputs.named()
    pooled = tensors.pop("pooled")
    if manifest.pool:
        tensors["pooled"] = pooled
    return {**tensors, RUNTIME_POOLED: pooled}


def _answer(answers: Answers) -> Answer:
    outputs = answers.outputs
    assert outputs.pooled is not None
    return Answer(answers.input_ids, outputs.logits, outputs.pooled)
