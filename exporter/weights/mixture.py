"""Which linears of an int8 engine stay in float: the fewest that bring its error under a budget."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exporter.model.packed_forward import PackedESM2
from exporter.weights.calibration import Calibration, batches
from exporter.weights.int8 import Recipe
from exporter.weights.int8_eager import quantised_linears
from exporter.weights.smoothing import Site, sites
from runtime.manifest_schema import HEAD
from runtime.pairs import CONTACTS

# Relative L2 on the calibration proteins. Synthetic weights have about 0.02 there, and little
# more on the gate's worst pack; two layers with large channels that were not smoothed had 3 times
# it, on nearly all masks. The gate's stop is 0.06.
BUDGET = 0.03


@dataclass(frozen=True)
class Mixture:
    """What was chosen.

    Attributes:
        recipe: of the engine.
        in_float: linears that stay so, the most sensitive first.
        error: relative L2 of the worst output on the calibration proteins.
        error_of_int8: the same with every linear in int8.
    """

    recipe: Recipe
    in_float: Sequence[str]
    error: float
    error_of_int8: float


@torch.no_grad()
def choose(
    packed: PackedESM2, recipe: Recipe, calibration: Calibration, budget: float = BUDGET
) -> Mixture:
    """Keeps linears in float until ``budget`` is met; linears that read the same stay together.

    If it is not met at once, each of them is quantised alone, on all proteins: a forward for each.
    Errors of so many roundings add up like independent ones, so the largest go first.

    Args:
        packed: on the CPU, in float32.
        recipe: with every linear quantised.
        calibration: the proteins to run.
        budget: relative L2 of the worst output.
    """
    error_of = _error_of(packed, calibration)
    whole = error_of(recipe)
    if not whole > budget:  # NaN: the gate says what is wrong
        return Mixture(recipe, [], whole, whole)
    order = _by_sensitivity(recipe, error_of)
    errors = {0: whole, len(order): 0.0}

    def is_met(kept: int) -> bool:
        if kept not in errors:
            errors[kept] = error_of(without(recipe, order[:kept]))
        return errors[kept] <= budget

    kept = bisect_left(range(len(order)), True, key=is_met)
    return Mixture(
        without(recipe, order[:kept]),
        [reader for site in order[:kept] for reader in site.readers],
        errors[kept],
        whole,
    )


@torch.no_grad()
def by_sensitivity(packed: PackedESM2, recipe: Recipe, calibration: Calibration) -> list[Site]:
    """What linears read, the one whose rounding alone does most harm first."""
    return _by_sensitivity(recipe, _error_of(packed, calibration))


def _error_of(packed: PackedESM2, calibration: Calibration) -> Callable[[Recipe], float]:
    inputs = list(batches(calibration))
    # A head may give one number near zero, and contacts are: neither has a measure of its own.
    measured = [i for i, name in enumerate(packed.outputs) if name not in (HEAD, CONTACTS)]

    def answers() -> list[tuple[Tensor, ...]]:
        given = [packed(*tensors) for tensors in inputs]
        return [tuple(outputs[i] for i in measured) for outputs in given]

    exact = answers()

    def error_of(recipe: Recipe) -> float:
        with quantised_linears(packed, recipe):
            return worst_error(answers(), exact)

    return error_of


def _by_sensitivity(recipe: Recipe, error_of: Callable[[Recipe], float]) -> list[Site]:
    return sorted(
        sites(recipe.linears),
        key=lambda site: error_of(replace(recipe, linears=site.readers)),
        reverse=True,
    )


def without(recipe: Recipe, kept: Sequence[Site]) -> Recipe:
    """The same with the readers of ``kept`` in float."""
    in_float = {reader for site in kept for reader in site.readers}
    return replace(recipe, linears=[name for name in recipe.linears if name not in in_float])


def worst_error(
    answers: Sequence[tuple[Tensor, ...]], exact: Sequence[tuple[Tensor, ...]]
) -> float:
    """Relative L2 of the worst output over all packs."""
    errors = []
    for got, true in zip(zip(*answers, strict=True), zip(*exact, strict=True), strict=True):
        whole = torch.cat(true).double()
        error = (torch.cat(got) - whole).norm() / whole.norm().clamp(min=1e-30)
        errors.append(float(error))
    return max(errors)
