"""``weights.int8.safetensors``: the linears' weights in int8, one scale per output channel.

Beside them the factors of what is smoothed, and the LayerNorms and biases that took factors in.
All else is not in it: int8 engines read ``weights.safetensors`` too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from exporter.model.packed_forward import PackedESM2
from exporter.weights.shared import save
from exporter.weights.smoothing import NOTHING, SUFFIX, Smoothing, sites

FILE_NAME = "weights.int8.safetensors"

# 7 bits: CPUs with AVX2 but without VNNI add two products of uint8 and int8 in 16 bits and cut the
# sum off at 32767. 2 x 255 x 64 is the largest that fits; see docs/decisions.md, 2026-11-21.
LEVELS = 64


class Quantised(NamedTuple):
    """A weight as ``values * scales``.

    Attributes:
        values: ``[N, K]`` int8, within +-``LEVELS``.
        scales: ``[N]`` float32, of each output channel.
    """

    values: Tensor
    scales: Tensor


def quantise(weight: Tensor) -> Quantised:
    """``[N, K]`` float32 to int8: each row's largest magnitude becomes ``LEVELS``."""
    largest = weight.abs().amax(dim=1)
    scales = torch.where(largest > 0, largest, 1.0) / LEVELS
    values = (weight / scales[:, None]).round().clamp(-LEVELS, LEVELS)
    return Quantised(values.to(torch.int8), scales)


def dequantise(quantised: Quantised) -> Tensor:
    """The float32 weight that the int8 values stand for."""
    return quantised.values * quantised.scales[:, None]


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Every linear by name, in the order of the model.

    The output projection of the LM head is none: it is the embedding table, which stays float32.
    Nor are those of a head that was trained on top: they are small, and labels hang on them.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith("head."):
            yield name, module


def stored_names(linear: str) -> tuple[str, str]:
    """Of its values and its scales in the file."""
    return f"{linear}.weight.int8", f"{linear}.weight.scale"


def stored(quantised: Quantised) -> tuple[Tensor, Tensor]:
    """As they lie in the file: values ``[K, N]``, as ONNX multiplies, and scales ``[N]``."""
    return quantised.values.T.contiguous(), quantised.scales


@torch.no_grad()
def write(packed: PackedESM2, folder: Path, smoothing: Smoothing = NOTHING) -> None:
    """Quantises every linear of ``packed``.

    Args:
        packed: on the CPU, in float32.
        folder: the artifact.
        smoothing: of what the linears read.
    """
    known = {site.readers[0] for site in sites(name for name, _ in linears(packed))}
    kept = Smoothing({n: factors for n, factors in smoothing.factors.items() if n in known})
    tensors = {f"{name}{SUFFIX}": factors for name, factors in kept.factors.items()}
    quantised = {f"{name}.weight" for name, _ in linears(packed)}
    for name, parameter in packed.named_parameters():
        tensors |= _tensors_of(name, parameter, kept, name in quantised)
    save(tensors, folder / FILE_NAME)


def _tensors_of(
    name: str, parameter: Tensor, smoothing: Smoothing, is_quantised: bool
) -> dict[str, Tensor]:
    """What the file holds of a parameter: nothing of one that is used as it is."""
    engines = smoothing.taken_in(name, parameter)
    if is_quantised:
        names = stored_names(name.removesuffix(".weight"))
        return dict(zip(names, stored(quantise(engines)), strict=True))
    return {} if engines is parameter else {name: engines}


def read_smoothing(folder: Path) -> Smoothing:
    """The factors in the file."""
    with safe_open(folder / FILE_NAME, "pt") as file:
        names = [name for name in set(file.keys()) if name.endswith(SUFFIX)]
        return _smoothing_of({name: file.get_tensor(name) for name in names})


def _smoothing_of(tensors: Mapping[str, Tensor]) -> Smoothing:
    return Smoothing(
        {n.removesuffix(SUFFIX): tensors[n] for n in sorted(tensors) if n.endswith(SUFFIX)}
    )


def differences(packed: PackedESM2, folder: Path) -> list[str]:
    """Which tensors are not those of ``packed``, smoothed and quantised; in sentences.

    Each must be that bit by bit, and, whatever smoothing and quantising do, each weight within half
    a step of the original.

    Args:
        packed: in float32, with the checkpoint's weights.
        folder: the artifact.
    """
    weights = {name: linear.weight for name, linear in linears(packed)}
    smoothing = read_smoothing(folder)
    if found := smoothing.problems(weights):
        return found
    with safe_open(folder / FILE_NAME, "pt") as file, torch.no_grad():
        left = {name for name in set(file.keys()) if not name.endswith(SUFFIX)}
        for name, parameter in packed.named_parameters():
            linear = name.removesuffix(".weight")
            expected = _tensors_of(name, parameter, smoothing, linear in weights)
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
    smoothing = _smoothing_of(stored_in)
    changed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        is_quantised = stored_names(name.removesuffix(".weight"))[0] in stored_in
        changed |= _tensors_of(name, weight, smoothing, is_quantised)
    return changed
