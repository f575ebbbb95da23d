"""What every head is: a module from the last representation of a pack to numbers of its rows."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from exporter.errors import CheckpointError
from runtime.manifest_schema import HeadEntry

# What weights of a head may be in; all of them are widened, or rounded, to float32.
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MIXES = (
    "has {axes} axes, as a convolution over neighbours has. In a pack the neighbours of a "
    "protein's ends are other proteins, so such a head would mix proteins, and is not exported"
)


class Head(nn.Module):
    """Linears and what stands between them; parameters are named as in the artifact.

    Attributes:
        entry: for the manifest.
        rows: what ``forward`` gives a row for each of: N proteins, or T tokens.
    """

    def __init__(self, entry: HeadEntry):
        super().__init__()
        self.entry = entry
        self.rows: Literal["N", "T"] = "N" if entry.rows == "proteins" else "T"

    @property
    def num_labels(self) -> int:
        """C."""
        return len(self.entry.id2label)

    @abstractmethod
    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """``[T, E]``, the last representation, and ``[N + 1]`` to ``[N, C]`` or ``[T, C]``."""


def fill(head: Head, tensors: Mapping[str, Tensor], label: str, width: int) -> Head:
    """Puts weights into a head.

    Args:
        head: whose linears are as wide as the model.
        tensors: under the head's own names, of any float dtype.
        label: of where they come from.
        width: E of the model.

    Raises:
        CheckpointError: some are missing, unknown, misshapen or not finite; says all of it.
    """
    expected = {name: list(tensor.shape) for name, tensor in head.state_dict().items()}
    for name, tensor in tensors.items():
        refuse_mixing(name, tensor, label)
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in expected]
    for name, tensor in tensors.items():
        if name in expected and list(tensor.shape) != expected[name]:
            problems.append(f"{name} is {list(tensor.shape)} instead of {expected[name]}")
        elif tensor.dtype not in FLOATS:
            problems.append(f"{name} is {tensor.dtype}, no float")
        elif not tensor.isfinite().all():
            problems.append(f"{name} holds NaN or Inf")
    if problems:
        raise CheckpointError(
            f"the head of {label} does not fit a model of width {width} and "
            f"{head.num_labels} labels: {'; '.join(problems)}"
        )
    head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return head.eval().requires_grad_(False)


def refuse_mixing(name: str, tensor: Tensor, label: str) -> None:
    """Raises CheckpointError for a tensor of more axes than a linear's weight has."""
    if tensor.ndim > 2:
        what = MIXES.format(axes=tensor.ndim)
        raise CheckpointError(f"{label} holds a head whose {name} {list(tensor.shape)} {what}")
