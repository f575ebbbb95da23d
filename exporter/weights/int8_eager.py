"""Eager fair-esm with linears quantised as an int8 engine's are: the error that int8 itself has.

What float16 eager is to a float16 engine, this is to an int8 engine: the measure of what rounding
may do. Numbers are rounded to their steps and multiplied in float, so it needs no int8 kernels.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor, nn

from exporter.weights.int8 import Recipe, dequantise, linears, quantise

ACTIVATION_LEVELS = 127


@contextmanager
def quantised_linears(model: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Linears of fair-esm's ``model`` compute in steps of int8; weights stay as they are.

    Factors that an engine has in other weights are multiplied here: they are powers of two.
    """
    with ExitStack() as stack:
        for name, linear in linears(model):
            if name in recipe.linears:
                forward = partial(_forward, linear, name, recipe)
                stack.enter_context(patch.object(linear, "forward", forward))
        yield


def round_rows(x: Tensor) -> Tensor:
    """Each row in steps of 1/127 of its largest magnitude."""
    largest = x.abs().amax(dim=-1, keepdim=True)
    steps = torch.where(largest > 0, largest, 1.0) / ACTIVATION_LEVELS
    return (x / steps).round() * steps


def _forward(linear: nn.Linear, name: str, recipe: Recipe, x: Tensor) -> Tensor:
    factors = recipe.smoothing.of_inputs.get(name)
    x = x if factors is None else x * factors
    # Dequantised on the fly: a second model of 15 billion parameters would not fit.
    undone = recipe.smoothing.columns_undone(name, linear.weight)
    weight = dequantise(quantise(undone, recipe.levels))
    return nn.functional.linear(round_rows(x), weight, linear.bias)
