"""``weights.int8.safetensors``: the linears' weights in int8, one scale per output channel.

Beside them the number of their levels, the factors of what is smoothed, and whatever took factors
in. All else is not in it: int8 engines read ``weights.safetensors`` too.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from exporter.model.packed_forward import PackedESM2
from exporter.weights.shared import save
from exporter.weights.smoothing import NOTHING, SUFFIX, Smoothing, sites

FILE_NAME = "weights.int8.safetensors"

# x86 without VNNI adds two products of uint8 and int8 in 16 bits and cuts the sum off at 32767, so
# that 2 x 255 x 64 just fits: with 8 bits the runtime asks for others there (``engines.onnx.cpu``).
LEVELS_OF_BITS = {7: 64, 8: 127}
LEVELS = LEVELS_OF_BITS[8]
# The tensor with their number; a file of before has none.
LEVELS_NAME, LEVELS_BEFORE = "levels", LEVELS_OF_BITS[7]
_VALUES = ".weight.int8"


class Quantised(NamedTuple):
    """A weight as ``values * scales``.

    Attributes:
        values: ``[N, K]`` int8.
        scales: ``[N]`` float32, of each output channel.
    """

    values: Tensor
    scales: Tensor


@dataclass(frozen=True)
class Recipe:
    """How an engine's linears are quantised.

    Attributes:
        linears: those that are; all others stay in float.
        smoothing: of what they read.
        levels: their weights lie within +- so many.
    """

    linears: Collection[str]
    smoothing: Smoothing = NOTHING
    levels: int = LEVELS

    def digest(self) -> str:
        """Of all of it."""
        return f"{self.smoothing.digest()} {self.levels} {sorted(self.linears)}"


def quantise(weight: Tensor, levels: int = LEVELS) -> Quantised:
    """``[N, K]`` float32 to int8: each row's largest magnitude becomes ``levels``."""
    largest = weight.abs().amax(dim=1)
    scales = torch.where(largest > 0, largest, 1.0) / levels
    values = (weight / scales[:, None]).round().clamp(-levels, levels)
    return Quantised(values.to(torch.int8), scales)


def dequantise(quantised: Quantised) -> Tensor:
    """The float32 weight that the int8 values stand for."""
    return quantised.values * quantised.scales[:, None]


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Every linear by name, in the order of the model.

    The output projection of the LM head is none: it is the embedding table, which stays float32.
    Nor are those of a head that was trained on top: they are small, and labels hang on them; nor
    the contact head's, which weighs attention.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(("head.", "contact_head.")):
            yield name, module


def stored_names(linear: str) -> tuple[str, str]:
    """Of its values and its scales in the file."""
    return f"{linear}{_VALUES}", f"{linear}.weight.scale"


def stored(quantised: Quantised) -> tuple[Tensor, Tensor]:
    """As they lie in the file: values ``[K, N]``, as ONNX multiplies, and scales ``[N]``."""
    return quantised.values.T.contiguous(), quantised.scales


@torch.no_grad()
def write(packed: PackedESM2, folder: Path, recipe: Recipe) -> None:
    """Quantises linears of ``packed``.

    Args:
        packed: on the CPU, in float32.
        folder: the artifact.
        recipe: which, and how. Inputs of others are not smoothed.
    """
    known = {site.readers[0] for site in sites(recipe.linears)}
    factors = {n: factors for n, factors in recipe.smoothing.factors.items() if n in known}
    recipe = replace(recipe, smoothing=Smoothing(factors))
    tensors = {f"{name}{SUFFIX}": of_input for name, of_input in factors.items()}
    tensors[LEVELS_NAME] = torch.tensor(recipe.levels)
    for name, parameter in packed.named_parameters():
        tensors |= _tensors_of(name, parameter, recipe)
    save(tensors, folder / FILE_NAME)


def _tensors_of(name: str, parameter: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """What the file holds of a parameter: nothing of one that is used as it is."""
    engines = recipe.smoothing.taken_in(name, parameter)
    linear = name.removesuffix(".weight")
    if linear in recipe.linears:
        quantised = quantise(engines, recipe.levels)
        return dict(zip(stored_names(linear), stored(quantised), strict=True))
    return {} if engines is parameter else {name: engines}


def read_recipe(folder: Path) -> Recipe:
    """By which the file was written."""
    with safe_open(folder / FILE_NAME, "pt") as file:
        return _recipe_of(set(file.keys()), file.get_tensor)


def recipe_of(tensors: Mapping[str, Tensor]) -> Recipe:
    """By which tensors of the file were written."""
    return _recipe_of(tensors, tensors.__getitem__)


def _recipe_of(names: Iterable[str], tensor_of: Callable[[str], Tensor]) -> Recipe:
    names = sorted(names)
    return Recipe(
        [n.removesuffix(_VALUES) for n in names if n.endswith(_VALUES)],
        Smoothing({n.removesuffix(SUFFIX): tensor_of(n) for n in names if n.endswith(SUFFIX)}),
        int(tensor_of(LEVELS_NAME)) if LEVELS_NAME in names else LEVELS_BEFORE,
    )


def differences(packed: PackedESM2, folder: Path) -> list[str]:
    """Which tensors are not those of ``packed``, smoothed and quantised; in sentences.

    Each must be that bit by bit, and, whatever smoothing and quantising do, each weight within half
    a step of the original.

    Args:
        packed: in float32, with the checkpoint's weights.
        folder: the artifact.
    """
    recipe = read_recipe(folder)
    smoothing = recipe.smoothing
    weights = {name: x.weight for name, x in linears(packed) if name in recipe.linears}
    if found := smoothing.problems(weights):
        return found
    with safe_open(folder / FILE_NAME, "pt") as file, torch.no_grad():
        left = {name for name in set(file.keys()) if not name.endswith(SUFFIX)} - {LEVELS_NAME}
        for name, parameter in packed.named_parameters():
            linear = name.removesuffix(".weight")
            expected = _tensors_of(name, parameter, recipe)
            missing = sorted(expected.keys() - left)
            left.difference_update(expected)
            if missing:
                found.append(f"{' or '.join(missing)} is missing")
                continue
            for key, wanted in expected.items():
                tensor = file.get_tensor(key)
                if tensor.dtype != wanted.dtype or not torch.equal(tensor, wanted):
                    found.append(f"{key} differs")
            if linear in weights:
                values, scales = map(file.get_tensor, stored_names(linear))
                if _is_far(values, scales, linear, parameter, smoothing):
                    found.append(
                        f"{stored_names(linear)[0]} is more than half a step from the checkpoint"
                    )
        found += [f"{key} is unknown" for key in sorted(left)]
    return found


def _is_far(
    values: Tensor, scales: Tensor, linear: str, weight: Tensor, smoothing: Smoothing
) -> bool:
    """Whether a weight, its smoothing undone, is more than half a step from the checkpoint's."""
    if values.shape[::-1] != weight.shape or len(scales) != values.shape[1]:
        return False  # it differs, and was named for that
    steps = scales.double()[:, None] * torch.ones_like(weight, dtype=torch.float64)
    if (of_inputs := smoothing.of_inputs.get(linear)) is not None:
        steps *= of_inputs
    if (of_outputs := smoothing.of_outputs.get(linear)) is not None:
        steps /= of_outputs[:, None]
    # Half a step, and the rounding of float32 in the quotient and in the scale.
    return bool(((values.T * steps - weight).abs() > (0.5 + 1e-4) * steps).any())


def requantised(
    weights: Mapping[str, Tensor], stored_in: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What changed float weights make of the tensors of a file, by their names in it.

    Args:
        weights: changed, by fair-esm's names.
        stored_in: the tensors of ``weights.int8.safetensors``.
    """
    recipe = recipe_of(stored_in)
    changed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        changed |= _tensors_of(name, weight, recipe)
    return changed
