"""Copies of a model in another floating dtype, or on another device."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def cast_copy(module: Module, dtype: torch.dtype) -> Module:
    """A copy whose parameters are rounded to ``dtype``; the original keeps its own.

    Buffers, the rotary frequencies above all, keep their dtype. Parameters that are in ``dtype``
    already are shared, and so are those that the original ties.
    """
    return _copy(module, lambda parameter: parameter.to(dtype))


def copy_on(module: Module, device: torch.device | str) -> Module:
    """A copy on another device; parameters are copied there once, and the original stays."""
    return _copy(module, lambda parameter: parameter.to(device)).to(device)


def _copy(module: Module, change: Callable[[Tensor], Tensor]) -> Module:
    changed = {
        id(parameter): nn.Parameter(change(parameter), requires_grad=False)
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, changed)
