"""Copies of a model in another floating dtype."""

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def cast_copy(module: Module, dtype: torch.dtype) -> Module:
    """A copy whose parameters are rounded to ``dtype``; the original keeps its own.

    Buffers, the rotary frequencies above all, keep their dtype. Parameters that are in ``dtype``
    already are shared, and so are those that the original ties.
    """
    rounded = {
        id(parameter): nn.Parameter(parameter.to(dtype), requires_grad=False)
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, rounded)


def copy_on(module: Module, device: torch.device | str) -> Module:
    """A copy on another device; parameters are copied there once, and the original stays."""
    moved = {
        id(parameter): nn.Parameter(parameter.to(device), requires_grad=False)
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, moved).to(device)
