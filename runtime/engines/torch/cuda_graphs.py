"""CUDA graphs for small packs: filled up to a bucket, captured once, replayed.

A forward is some hundred kernels. Those of a small pack take less time than their launches, which
a replay does at once. A graph has fixed shapes, so packs are filled up with proteins that nobody
asked for; what they compute is cut off.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.manifest_schema import Rows
from runtime.tokenizer import EOS_ID

# Larger packs keep the card busy without it.
MAX_TOKENS = 4096
# Each holds the inputs and outputs of its bucket.
MAX_GRAPHS = 32

Forward = Callable[[list[Tensor]], Iterable[Tensor]]


@dataclass(frozen=True)
class Bucket:
    """The shape of a captured pack: at least that of every pack that it runs.

    Attributes:
        num_tokens: T.
        num_proteins: N.
        max_seqlen: of which no protein has more tokens.
    """

    num_tokens: int
    num_proteins: int
    max_seqlen: int


def bucket_of(num_tokens: int, num_proteins: int, max_seqlen: int) -> Bucket:
    """The bucket of a pack: each size at most half as large again as it must be."""
    tokens, longest = _size(num_tokens), _size(max_seqlen)
    fillers = -(-(tokens - num_tokens) // longest)
    return Bucket(tokens, _size(num_proteins + fillers), longest)


def _size(least: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ..."""
    power = max(16, 1 << (least - 1).bit_length())
    return power * 3 // 4 if least <= power * 3 // 4 and power > 16 else power


def filling_bounds(num_tokens: int, num_proteins: int, bucket: Bucket) -> NDArray[np.int32]:
    """What follows the pack's own ``cu_seqlens``.

    Proteins of at most ``bucket.max_seqlen`` tokens up to ``bucket.num_tokens``, then empty ones.

    Returns:
        ``[bucket.num_proteins - num_proteins]``.
    """
    count = bucket.num_proteins - num_proteins
    ends = num_tokens + bucket.max_seqlen * np.arange(1, count + 1)
    return np.minimum(ends, bucket.num_tokens).astype(np.int32)


def fill(inputs: list[Tensor], bucket: Bucket) -> list[Tensor]:
    """A pack filled up to ``bucket``: ``input_ids``, ``cu_seqlens``, ``max_seqlen``."""
    input_ids, cu_seqlens, _ = inputs
    tokens, proteins = len(input_ids), len(cu_seqlens) - 1
    bounds = torch.from_numpy(filling_bounds(tokens, proteins, bucket))
    if cu_seqlens.is_cuda:
        bounds = bounds.pin_memory().to(cu_seqlens.device, non_blocking=True)
    return [
        torch.nn.functional.pad(input_ids, (0, bucket.num_tokens - tokens), value=EOS_ID),
        torch.cat([cu_seqlens, bounds]),
        torch.tensor(bucket.max_seqlen),
    ]


class GraphedForward:
    """A forward that replays captured graphs for packs of at most ``MAX_TOKENS`` tokens.

    Args:
        forward: from ``input_ids``, ``cu_seqlens`` on the card and ``max_seqlen`` on the host to
            the outputs named. It must not wait for the card.
        rows: of each output, in order.
    """

    def __init__(self, forward: Forward, rows: Sequence[Rows]):
        self._forward = forward
        self._rows = rows
        self._captured: dict[Bucket, _Captured] = {}
        self._shared: _Shared | None = None

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        """Outputs on the card, valid until the next call."""
        input_ids, cu_seqlens, max_seqlen = inputs
        tokens, proteins = len(input_ids), len(cu_seqlens) - 1
        if tokens > MAX_TOKENS:
            return list(self._forward(inputs))
        bucket = bucket_of(tokens, proteins, int(max_seqlen))
        filled = fill(inputs, bucket)
        if bucket not in self._captured:
            if len(self._captured) == MAX_GRAPHS:
                return list(self._forward(inputs))
            self._shared = self._shared or _Shared()
            self._captured[bucket] = _Captured(self._forward, filled, self._shared)
        outputs = self._captured[bucket].replay(filled)
        count = {"tokens": tokens, "proteins": proteins}
        return [x[: count[rows]] for rows, x in zip(self._rows, outputs, strict=True)]


class _Shared:
    """What graphs share, as none runs beside another.

    Attributes:
        stream: on which they are captured; PyTorch keeps memory for each stream.
        pool: memory of what lies between a graph's inputs and its outputs.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()


class _Captured:
    """One graph with the tensors that it reads and writes."""

    def __init__(self, forward: Forward, inputs: list[Tensor], shared: _Shared):
        self._inputs = inputs
        # As PyTorch's manual asks: first on another stream, so that libraries are set up.
        shared.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(shared.stream):
            for _ in range(2):
                list(forward(inputs))
        torch.cuda.current_stream().wait_stream(shared.stream)
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may wait for its results meanwhile, which would end a global capture.
        with torch.cuda.graph(self._graph, shared.pool, shared.stream, "thread_local"):
            self._outputs = list(forward(inputs))

    def replay(self, inputs: list[Tensor]) -> list[Tensor]:
        """The outputs for inputs of the captured shapes."""
        for static, given in zip(self._inputs[:2], inputs[:2], strict=True):
            static.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._outputs
