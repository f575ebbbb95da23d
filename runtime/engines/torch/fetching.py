"""From tensors on any device to arrays of the caller's own."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Fetched:
    """Tensors on their way to the host.

    A card's are copied behind the work that is queued, into pinned memory: whoever makes this does
    not wait, so the next pack can be queued before ``arrays`` waits for this one.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        tensors = [_widened(tensor) for tensor in tensors]
        self._on_host = [_copy_behind(tensor) if tensor.is_cuda else tensor for tensor in tensors]
        self._copied = None
        if any(tensor.is_cuda for tensor in tensors):
            self._copied = torch.cuda.Event()
            self._copied.record()

    def arrays(self) -> list[NDArray[np.floating]]:
        """What was computed, once it is here."""
        if self._copied is None:
            return [tensor.numpy() for tensor in self._on_host]
        self._copied.synchronize()
        # Pinned memory is for the next pack: callers may keep theirs.
        return [tensor.numpy().copy() for tensor in self._on_host]


def _widened(tensor: Tensor) -> Tensor:
    """NumPy has no bfloat16; float32 holds every bfloat16 exactly."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _copy_behind(tensor: Tensor) -> Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
