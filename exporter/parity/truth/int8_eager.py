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

from exporter.weights.int8 import dequantise, linears, quantise

ACTIVATION_LEVELS = 127


@contextmanager
def quantised_linears(model: nn.Module) -> Iterator[None]:
    """Every linear of fair-esm's ``model`` computes in steps of int8; weights stay as they are."""
    with ExitStack() as stack:
        for _, linear in linears(model):
            stack.enter_context(patch.object(linear, "forward", partial(_forward, linear)))
        yield


def round_rows(x: Tensor) -> Tensor:
    """Each row in steps of 1/127 of its largest magnitude."""
    largest = x.abs().amax(dim=-1, keepdim=True)
    steps = torch.where(largest > 0, largest, 1.0) / ACTIVATION_LEVELS
    return (x / steps).round() * steps


def _forward(linear: nn.Linear, x: Tensor) -> Tensor:
    # Dequantised on the fly: a second model of 15 billion parameters would not fit.
    return nn.functional.linear(round_rows(x), dequantise(quantise(linear.weight)), linear.bias)
