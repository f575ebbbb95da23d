"""Which attention backs this machine, and why."""

import logging
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from exporter.packed_attention import FLASH_ATTN_AVAILABLE
from runtime.attention import default_attention
from runtime.ops.cuda import HALF_DTYPES, choose_kernel

# Dtype and head dim of production: 650M and 3B in half precision.
TYPICAL_DTYPE = torch.bfloat16
TYPICAL_HEAD_DIM = 64


@dataclass(frozen=True)
class AttentionImplementation:
    """The attention that packs will run with.

    Attributes:
        name: ``flash-attn 2.8.3``, ``torch flash``, ``memory-efficient`` or ``standard``.
        runs_packed: whether packs run as they are, or must be unpacked to padded batches.
        reason: where it runs, or why nothing faster does; ``str()`` gives the whole line.
    """

    name: str
    runs_packed: bool
    reason: str

    def __str__(self) -> str:
        return self.reason


class HasAttention(Protocol):
    """A model that ``configure_flash_attention`` can set up."""

    attention: AttentionImplementation
    head_dim: int

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its parameters."""


Model = TypeVar("Model", bound=HasAttention)


def get_attention_implementation(
    device: torch.device | str | None = None,
    dtype: torch.dtype = TYPICAL_DTYPE,
    head_dim: int = TYPICAL_HEAD_DIM,
) -> AttentionImplementation:
    """What ``esm2::varlen_attention`` will run on this machine.

    Args:
        device: None takes the first CUDA device, or the CPU.
        dtype: of the model.
        head_dim: D.
    """
    available = torch.cuda.is_available()
    device = torch.device(device if device is not None else "cuda" if available else "cpu")
    if default_attention() == "standard":
        return AttentionImplementation(
            "standard", False, "standard attention: ESM2_V1_ATTENTION asks for the padded path"
        )
    if device.type == "cpu":
        why = "no CUDA device" if not available else "the model is on the CPU"
        return AttentionImplementation("standard", True, f"standard attention: {why}")
    if device.type != "cuda":
        return AttentionImplementation(
            "standard", False, f"standard attention: no packed kernel for device {device.type!r}"
        )
    capability = torch.cuda.get_device_capability(device)
    choice = choose_kernel(capability, dtype, head_dim)
    where = f"{torch.cuda.get_device_name(device)} (sm_{capability[0]}{capability[1]})"
    passed_over = f"; not {'; not '.join(choice.passed_over)}" if choice.passed_over else ""
    return AttentionImplementation(choice.name, True, f"{choice.name} on {where}{passed_over}")


def is_flash_attention_available() -> bool:
    """Whether flash-attn is installed and this machine has a GPU that it runs on."""
    if not FLASH_ATTN_AVAILABLE or not torch.cuda.is_available():
        return False
    capability = torch.cuda.get_device_capability()
    choice = choose_kernel(capability, HALF_DTYPES[0], TYPICAL_HEAD_DIM)
    return choice.name.startswith("flash-attn")


def configure_flash_attention(model: Model, logger: logging.Logger | None = None) -> Model:
    """Chooses the attention of ``model`` for its device and dtype, and logs one line saying so.

    Args:
        model: an ``ESM2WithFlashAttention``.
        logger: None takes this module's.

    Returns:
        ``model``.
    """
    model.attention = get_attention_implementation(model.device, model.dtype, model.head_dim)
    (logger or logging.getLogger(__name__)).info("%s", model.attention)
    return model
