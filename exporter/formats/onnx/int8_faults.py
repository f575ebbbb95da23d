"""Faults that only an int8 engine can have."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from exporter.formats.onnx import int8 as onnx_int8
from exporter.formats.onnx.contact_faults import contact_faults
from exporter.model.packed_forward import PackedESM2
from exporter.planted import Fault, GraphFault, Int8WeightsFault, State
from exporter.weights.int8 import LEVELS, recipe_of, stored_names
from runtime.engines.onnx.int8 import FORMAT as ONNX_INT8
from runtime.manifest_schema import Architecture, Manifest


def _edited(text: str, old: str, new: str) -> Callable[[PackedESM2], Any]:
    """The graph with an edited function."""
    original: str = getattr(onnx_int8, text)
    changed = original.replace(old, new)
    assert changed != original, f"{text} holds no {old!r}"
    return lambda packed: patch.object(onnx_int8, text, changed)


def _scale_doubled(state: State, architecture: Architecture) -> dict[str, Tensor]:
    name = stored_names(_middle(state))[1]
    scales = state[name].clone()
    scales[0] *= 2
    return {name: scales}


def _one_step_off(state: State, architecture: Architecture) -> dict[str, Tensor]:
    name = stored_names(_middle(state))[0]
    values = state[name].clone()
    values[0, 0] += -1 if values[0, 0] > 0 else 1
    return {name: values}


def _four_bits(state: State, architecture: Architecture) -> dict[str, Tensor]:
    whole = {name: x for name, x in state.items() if x.dtype == torch.int8}
    coarse = {name: (x.float() / 8).round() * 8 for name, x in whole.items()}
    return {name: x.clamp(-LEVELS, LEVELS).to(torch.int8) for name, x in coarse.items()}


def _is_smoothed(manifest: Manifest) -> str:
    entry = manifest.engines[ONNX_INT8].quantised
    smoothing = entry.smoothing if entry else None
    return "" if smoothing and smoothing.folded else "no channel of this model needed smoothing"


def _middle(state: State) -> str:
    """A linear that is quantised: some may be in float."""
    linears = recipe_of(state).linears
    return sorted(linears)[len(linears) // 2]


# One scale for all tokens: a protein's numbers then depend on its neighbours in the pack.
_BY_PACK = "steps_of_all = ReduceMax <keepdims = 1> (own) steps = Expand(steps_of_all, tokens)"


def own_faults() -> list[Fault]:
    """All that only this format can have."""
    return [*int8_faults(), *contact_faults()]


def int8_faults() -> list[Fault]:
    """Those of quantising."""
    return [
        GraphFault(
            "smoothing on one side only",
            "graph",
            lambda packed: patch.object(onnx_int8, "_use_smoothed", lambda graph, folder: None),
            applies=_is_smoothed,
        ),
        GraphFault(
            "activations with one scale for the pack",
            "graph",
            _edited(
                "_QUANTISE",
                "steps = Div(largest, levels)\n  tokens = Shape(steps)",
                f"own = Div(largest, levels)\n  tokens = Shape(own)\n  {_BY_PACK}",
            ),
        ),
        GraphFault(
            "activations cut off at half their range",
            "graph",
            _edited("_QUANTISE", "float {{127}}", "float {{254}}"),
        ),
        GraphFault(
            "shift of activations off by one", "graph", _edited("_LINEAR", "{{128}}", "{{127}}")
        ),
        Int8WeightsFault("scale of one channel doubled", "weights", _scale_doubled),
        Int8WeightsFault("one weight off by one step", "weights", _one_step_off),
        Int8WeightsFault("weights rounded to 4 bits", "weights", _four_bits),
    ]
