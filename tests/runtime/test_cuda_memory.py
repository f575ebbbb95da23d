"""Buffers and copies of a stream, on host memory: nothing is copied before it is waited for."""

# ruff: noqa: N802, N815 - names are of the CUDA runtime

import ctypes
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.engines import cuda_memory
from runtime.errors import EngineError

Answer = tuple[int, int | None]


class HostOnly:
    """Of the CUDA runtime what a stream asks for, in cuda-bindings' way: (error, value).

    Attributes:
        on_the_card, pinned: sizes of blocks, by their addresses.
        allocations: sizes, in their order.
    """

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="H2D", cudaMemcpyDeviceToHost="D2H")

    def __init__(self) -> None:
        self.on_the_card: dict[int, int] = {}
        self.pinned: dict[int, int] = {}
        self.allocations: list[int] = []
        self.is_full = False
        self.streams = 0
        self._memory: dict[int, object] = {}
        self._queued: list[Callable[[], object]] = []

    def cudaGetDevice(self) -> Answer:
        return 0, 0

    def cudaStreamCreate(self) -> Answer:
        self.streams += 1
        return 0, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.streams -= 1
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        for copy in self._queued:
            copy()
        self._queued.clear()
        return (0,)

    def cudaMalloc(self, size: int) -> Answer:
        return self._new(self.on_the_card, size)

    def cudaMallocHost(self, size: int) -> Answer:
        return self._new(self.pinned, size)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.on_the_card[address], self._memory[address]
        return (0,)

    def cudaFreeHost(self, address: int) -> tuple[int]:
        del self.pinned[address], self._memory[address]
        return (0,)

    def cudaMemcpyAsync(self, to: int, of: int, size: int, kind: str, stream: int) -> tuple[int]:
        if kind == "D2H":
            assert size <= self.pinned[to]
            assert size <= self.on_the_card[of]
        self._queued.append(lambda: ctypes.memmove(to, of, size))
        return (0,)

    def _new(self, blocks: dict[int, int], size: int) -> Answer:
        if self.is_full:
            return 2, None
        memory = ctypes.create_string_buffer(size)
        address = ctypes.addressof(memory)
        self._memory[address] = memory
        blocks[address] = size
        self.allocations.append(size)
        return 0, address


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> HostOnly:
    card = HostOnly()
    monkeypatch.setattr(cuda_memory, "cudart", lambda: card)
    return card


def there_and_back(stream: cuda_memory.Stream, array: np.ndarray) -> np.ndarray:
    stream.send("x", array)
    return stream.fetch("x", array.shape, array.dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint16"])
def test_results_come_to_pinned_memory(card: HostOnly, dtype: str) -> None:
    stream = cuda_memory.Stream()
    sent = np.arange(12, dtype=dtype).reshape(3, 4)
    fetched = there_and_back(stream, sent)
    assert fetched.ctypes.data in card.pinned
    assert not fetched.any()  # the card is not there yet
    stream.wait()
    assert np.array_equal(fetched, sent)
    assert fetched.dtype == dtype


def test_buffers_grow_and_are_used_again(card: HostOnly) -> None:
    stream = cuda_memory.Stream()
    for rows in (2, 3, 1, 3):
        sent = np.full((rows, 4), rows, np.float32)
        fetched = there_and_back(stream, sent)
        stream.wait()
        assert np.array_equal(fetched, sent)
    assert card.allocations == [32, 32, 48, 48]
    assert len(card.pinned) == len(card.on_the_card) == 1


def test_nothing_has_a_place_too(card: HostOnly) -> None:
    stream = cuda_memory.Stream()
    assert there_and_back(stream, np.empty((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize("is_dropped", [False, True])
def test_all_is_freed_with_the_stream(card: HostOnly, is_dropped: bool) -> None:
    stream = cuda_memory.Stream()
    there_and_back(stream, np.ones(5))
    stream.wait()
    if is_dropped:
        del stream
    else:
        stream.close()
        stream.close()
    assert (card.on_the_card, card.pinned, card.streams) == ({}, {}, 0)


def test_a_full_host_is_told_and_frees_the_rest(card: HostOnly) -> None:
    stream = cuda_memory.Stream()
    there_and_back(stream, np.ones(5))
    stream.buffer("x", 100)
    card.is_full = True
    with pytest.raises(EngineError, match="CUDA: 2"):
        stream.fetch("x", (9,), np.dtype(np.float64))
    stream.close()
    assert (card.on_the_card, card.pinned, card.streams) == ({}, {}, 0)
