"""``weights.int8.safetensors``: the linears' weights in int8, one scale per output channel.

Embeddings, biases and LayerNorms are not in it: int8 engines read ``weights.safetensors`` too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from exporter.model.packed_forward import PackedESM2
from exporter.weights.shared import save

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
def write(packed: PackedESM2, folder: Path) -> None:
    """Quantises every linear of ``packed``.

    Args:
        packed: on the CPU, in float32.
        folder: the artifact.
    """
    tensors: dict[str, Tensor] = {}
    for name, linear in linears(packed):
        values = stored(quantise(linear.weight))
        tensors |= dict(zip(stored_names(name), values, strict=True))
    save(tensors, folder / FILE_NAME)


def differences(packed: PackedESM2, folder: Path) -> list[str]:
    """Which tensors of the file are not the linears of ``packed``, quantised; in sentences.

    Each must be what quantising gives, bit by bit, and, whatever quantising does, within half a
    step of the original.

    Args:
        packed: in float32, with the checkpoint's weights.
        folder: the artifact.
    """
    found = []
    with safe_open(folder / FILE_NAME, "pt") as file, torch.no_grad():
        left = set(file.keys())
        for name, linear in linears(packed):
            names = stored_names(name)
            if not left.issuperset(names):
                found.append(f"{' or '.join(names)} is missing")
                continue
            left.difference_update(names)
            values, scales = map(file.get_tensor, names)
            expected = stored(quantise(linear.weight))
            for key, tensor, wanted in zip(names, (values, scales), expected, strict=True):
                if tensor.dtype != wanted.dtype or not torch.equal(tensor, wanted):
                    found.append(f"{key} differs")
            if values.shape[::-1] == linear.weight.shape and len(scales) == values.shape[1]:
                wide = linear.weight.double()
                distance = (values.T.double() * scales.double()[:, None] - wide).abs()
                # Half a step, and the rounding of float32 in the quotient and in the scale.
                if (distance > (0.5 + 1e-4) * scales.double()[:, None]).any():
                    found.append(f"{names[0]} is more than half a step from the checkpoint")
        found += [f"{key} is unknown" for key in sorted(left)]
    return found


def requantised(
    weights: Mapping[str, Tensor], stored_in: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What changed float weights make of the tensors of a file, by their names in it.

    Args:
        weights: changed, by fair-esm's names.
        stored_in: the tensors of ``weights.int8.safetensors``.
    """
    changed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        names = stored_names(name.removesuffix(".weight"))
        if names[0] in stored_in:
            changed |= dict(zip(names, stored(quantise(weight)), strict=True))
    return changed
