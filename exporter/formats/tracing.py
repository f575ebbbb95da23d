"""How models are traced: the pack, and torch.export's settings."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.fx.experimental._config as shape_config
from torch import Tensor
from torch.export import Dim

SHORT = (11, 18, 7)


def tracing_pack(lengths: Sequence[int] = SHORT) -> tuple[Tensor, Tensor, Tensor]:
    """``input_ids`` [T], ``cu_seqlens`` [N + 1], ``max_seqlen`` 0-dim, of three short proteins.

    No test may use it: a graph can be right on it alone.

    Args:
        lengths: other ones, where a compiler chooses its kernels by them.
    """
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    input_ids = 4 + torch.arange(sum(lengths)) % 20
    input_ids[bounds[:-1]] = 0
    input_ids[bounds[1:] - 1] = 2
    return input_ids, bounds.to(torch.int32), torch.tensor(max(lengths))


def dynamic_shapes() -> tuple[dict[int, Dim], dict[int, Dim], dict[int, Dim]]:
    """Of ``tracing_pack``: T, and N + 1."""
    return {0: Dim("T", min=1)}, {0: Dim("B", min=2)}, {}


@contextmanager
def exporting() -> Iterator[None]:
    """torch.export in the block admits packs of a single protein, and is silent.

    Without backed_size_oblivious it takes any slice of cu_seqlens for a reason to assume N >= 2.
    """
    with torch.no_grad(), shape_config.patch(backed_size_oblivious=True), warnings.catch_warnings():  # type: ignore[attr-defined]
        warnings.simplefilter("ignore")
        yield
