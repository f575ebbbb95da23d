"""The pack that models are traced with. No test may use it: a graph can be right on it alone."""

import torch
from torch import Tensor


def tracing_pack() -> tuple[Tensor, Tensor, Tensor]:
    """``input_ids`` [T], ``cu_seqlens`` [N + 1], ``max_seqlen`` 0-dim, of three short proteins."""
    cu_seqlens = torch.tensor([0, 11, 29, 36], dtype=torch.int32)
    input_ids = 4 + torch.arange(36) % 20
    input_ids[cu_seqlens[:-1].long()] = 0
    input_ids[cu_seqlens[1:].long() - 1] = 2
    return input_ids, cu_seqlens, torch.tensor(18)
