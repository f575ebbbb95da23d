"""Passed or failed: an engine's error on every output of every pack against its budgets."""

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from exporter.parity.budgets import RELATIVE_TO_EAGER, Budget, budgets_for
from exporter.parity.metrics import Floats, TensorError, compare, ratio
from runtime.engine import Engine, Outputs
from runtime.errors import Esm2Error
from runtime.manifest import Architecture, ParityEntry
from runtime.packing import PackedBatch
from runtime.pooling import Pool, pool


class Row(msgspec.Struct, frozen=True):
    """One output tensor of one pack.

    Attributes:
        pack: its name.
        tensor: ``logits``, ``representations.<k>`` or ``pooled``.
        engine: the engine's error, or None where it gave nothing comparable.
        eager: the error of eager fair-esm in the engine's dtype.
        failures: sentences; empty if every budget is met.
    """

    pack: str
    tensor: str
    engine: TensorError | None
    eager: TensorError
    failures: list[str]

    @property
    def ratio(self) -> float:
        """The engine's error over eager's own, whole tensor or worst protein."""
        if self.engine is None:
            return float("inf")
        errors = [
            [error.relative_l2, error.worst_protein_relative_l2]
            for error in (self.engine, self.eager)
        ]
        return float(ratio(*np.array(errors)).max())


class EngineVerdict(msgspec.Struct, frozen=True):
    """The verdict on one engine."""

    engine: str
    library: str
    device: str
    attention: str
    passed: bool
    worst_relative_l2: float
    worst_ratio_to_eager: float
    rows: list[Row]

    def summary(self) -> ParityEntry:
        """For the manifest."""
        return ParityEntry(
            passed=self.passed,
            worst_relative_l2=self.worst_relative_l2,
            worst_ratio_to_eager=self.worst_ratio_to_eager,
            packs=len({row.pack for row in self.rows}),
        )


class Report(msgspec.Struct, frozen=True):
    """``parity.json``."""

    schema_version: int
    artifact: str
    dtype: str
    seed: int
    reference: dict[str, str]
    budgets: dict[str, float]
    engines: list[EngineVerdict]

    @property
    def passed(self) -> bool:
        """Whether there was an engine, and every one of them passed."""
        return bool(self.engines) and all(verdict.passed for verdict in self.engines)


def judge(
    engine: Engine,
    architecture: Architecture,
    packs: Mapping[str, PackedBatch],
    oracle: Mapping[str, Outputs],
    eager: Mapping[str, Outputs],
    pooling: Pool,
) -> EngineVerdict:
    """Runs an engine on every pack and compares every output.

    Args:
        engine: loaded.
        architecture: of the model.
        packs: what to run, by name.
        oracle: eager fair-esm in float64 on each.
        eager: eager fair-esm in the engine's dtype on each.
        pooling: of the last layer.
    """
    budgets = budgets_for(engine.spec.dtype, architecture.num_layers)
    rows: list[Row] = []
    for name, batch in tqdm(packs.items(), desc=engine.spec.format, leave=False, disable=None):
        expected = _tensors(oracle[name])
        eager_tensors = _tensors(eager[name])
        try:
            got = _tensors(_with_pooled(engine.run(batch), batch, pooling))
            problem = ""
        except Esm2Error as error:
            got, problem = {}, str(error)
        for tensor, truth in expected.items():
            bounds = batch.cu_seqlens
            if tensor == "pooled":
                bounds = np.arange(batch.num_proteins + 1, dtype=np.int32)
            eager_error = compare(eager_tensors[tensor], truth, bounds)
            rows.append(
                _row(name, tensor, got.get(tensor), truth, bounds, eager_error, budgets, problem)
            )
    errors = [row.engine.relative_l2 if row.engine else float("inf") for row in rows]
    return EngineVerdict(
        engine=engine.spec.format,
        library=engine.spec.library,
        device=engine.spec.device,
        attention=engine.spec.attention,
        passed=bool(rows) and not any(row.failures for row in rows),
        worst_relative_l2=max(errors, default=float("inf")),
        worst_ratio_to_eager=max((row.ratio for row in rows), default=float("inf")),
        rows=rows,
    )


def _row(
    pack: str, tensor: str, actual: Floats | None, truth: Floats, bounds: NDArray[np.int32],
    eager: TensorError, budgets: tuple[Budget, ...], problem: str,
) -> Row:  # fmt: skip
    if actual is None:
        return Row(pack, tensor, None, eager, [problem or f"the engine has no output {tensor!r}"])
    try:
        error = compare(actual, truth, bounds)
    except ValueError as reason:
        return Row(pack, tensor, None, eager, [str(reason)])
    row = Row(pack, tensor, error, eager, [])
    for budget in budgets:
        measured = row.ratio if budget is RELATIVE_TO_EAGER else error.relative_l2
        # "not <=" rather than ">": a NaN fails.
        if not measured <= budget.limit:
            row.failures.append(f"{budget.name}: {measured:.2e} is above {budget.limit:.2e}")
    return row


def _with_pooled(outputs: Outputs, batch: PackedBatch, pooling: Pool) -> Outputs:
    """An artifact without a pooled output is pooled by the runtime: that is what users get."""
    if outputs.pooled is not None:
        return outputs
    last = outputs.representations[max(outputs.representations)]
    return Outputs(outputs.logits, outputs.representations, pool(last, batch.cu_seqlens, pooling))


def _tensors(outputs: Outputs) -> dict[str, Floats]:
    tensors = {"logits": outputs.logits}
    for layer, values in outputs.representations.items():
        tensors[f"representations.{layer}"] = values
    if outputs.pooled is not None:
        tensors["pooled"] = outputs.pooled
    return tensors
