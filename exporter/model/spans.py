"""Where each token of a pack stands: its protein, and its position in it."""

import torch
from torch import Tensor


def token_spans(cu_seqlens: Tensor, num_tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each token its protein, and where that protein starts and ends.

    Written per token and without arithmetic on ``[N]``-sized tensors: ``torch.export`` would
    specialise those to N >= 2 and silently exclude packs of one protein.

    Args:
        cu_seqlens: ``[N + 1]`` int32 or int64, valid (see ``create_position_ids_packed``).
        num_tokens: ``[T]``, any integer tensor of the pack's length, for its shape and device.

    Returns:
        ``protein_index``, ``start``, ``end``: each ``[T]`` int64.
    """
    bounds = cu_seqlens.long()
    zeros = torch.zeros_like(num_tokens, dtype=torch.int64)
    # One longer than the pack, because the last bound is T itself.
    marks = torch.cat([zeros, zeros[:1]]).scatter(0, bounds, 1)
    protein_index = marks.cumsum(0)[:-1] - 1
    return protein_index, bounds[protein_index], bounds[protein_index + 1]


def create_position_ids_packed(cu_seqlens: Tensor) -> Tensor:
    """Positions within each protein: ``[0, 3, 7, 10]`` gives ``[0,1,2, 0,1,2,3, 0,1,2]``.

    Args:
        cu_seqlens: ``[N + 1]`` int32 or int64, starting at 0, strictly increasing.

    Returns:
        ``[T]`` int64 on the device of ``cu_seqlens``.

    Raises:
        ValueError: ``cu_seqlens`` is not as above; the message names the place.
    """
    check_cu_seqlens(cu_seqlens)
    positions = torch.arange(int(cu_seqlens[-1]), device=cu_seqlens.device)
    _, start, _ = token_spans(cu_seqlens, positions)
    return positions - start


def check_cu_seqlens(cu_seqlens: Tensor) -> None:
    """Raises ValueError, naming the place, unless ``cu_seqlens`` bounds at least one protein."""
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        raise ValueError(
            f"cu_seqlens must be 1-D [N + 1] with N >= 1, got {list(cu_seqlens.shape)}"
        )
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0:
        raise ValueError(f"cu_seqlens must start at 0, got cu_seqlens[0] = {bounds[0]}")
    for i in range(1, len(bounds)):
        if bounds[i] <= bounds[i - 1]:
            raise ValueError(
                "cu_seqlens must be strictly increasing, got "
                f"cu_seqlens[{i - 1}] = {bounds[i - 1]}, cu_seqlens[{i}] = {bounds[i]}"
            )
