"""Memory of the card and copies to and from it, for an engine library that has none of its own.

By NVIDIA's bindings of the CUDA runtime, cuda-bindings, which needs no PyTorch.
"""

import ctypes
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import EngineError, UnsupportedError

# Of each name: an address, and how many bytes are there.
Buffers = dict[str, tuple[int, int]]


def cudart() -> Any:
    """The CUDA runtime.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise UnsupportedError(
            f"cuda-bindings is not installed ({error}): pip install 'esm2-engines[tensorrt]'"
        ) from None
    return runtime


def use_card(index: int) -> None:
    """Makes a card the calling thread's own."""
    _checked(cudart().cudaSetDevice(index))


def compute_capability(index: int) -> str:
    """Of a card, such as ``8.9``.

    Raises:
        UnsupportedError: there is no card, or no driver for it.
    """
    api = cudart()
    try:
        kinds = api.cudaDeviceAttr
        major, minor = (
            _checked(api.cudaDeviceGetAttribute(kind, index))
            for kind in (
                kinds.cudaDevAttrComputeCapabilityMajor,
                kinds.cudaDevAttrComputeCapabilityMinor,
            )
        )
    except (EngineError, RuntimeError) as error:  # RuntimeError: the driver's library is missing
        raise UnsupportedError(f"it needs an NVIDIA GPU and its driver: {error}") from None
    return f"{major}.{minor}"


def model(index: int) -> str:
    """Name of a card, such as ``NVIDIA H100 80GB HBM3``."""
    properties = _checked(cudart().cudaGetDeviceProperties(index))
    return str(properties.name.rstrip(b"\0").decode())


class Stream:
    """A CUDA stream with buffers that grow and are used again, by name."""

    def __init__(self) -> None:
        self._api = cudart()
        self._device = _checked(self._api.cudaGetDevice())
        self.handle: int = int(_checked(self._api.cudaStreamCreate()))
        self._buffers: Buffers = {}
        self._staging: Buffers = {}
        # What is dropped without close() frees its memory too.
        self.close = weakref.finalize(
            self, _free, self._api, self.handle, self._buffers, self._staging
        )

    def use_device(self) -> None:
        """Makes the stream's card the calling thread's own, which may be another's."""
        _checked(self._api.cudaSetDevice(self._device))

    def buffer(self, name: str, num_bytes: int) -> int:
        """The address of at least ``num_bytes`` on the card; what was in it may be lost."""
        api = self._api
        return self._grown(self._buffers, name, num_bytes, api.cudaMalloc, api.cudaFree)

    def send(self, name: str, array: NDArray[Any]) -> int:
        """Copies a contiguous array into the buffer ``name``; its address."""
        address = self.buffer(name, array.nbytes)
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        _checked(
            self._api.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self.handle)
        )
        return address

    def fetch(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Copies from the buffer ``name``.

        Returns:
            What is filled after ``wait``, until the next ``fetch`` of the name: pinned memory of
            the stream's, for which a card needs no copy of the driver's own.
        """
        api, num_bytes = self._api, math.prod(shape) * dtype.itemsize
        there, _ = self._buffers[name]
        here = self._grown(self._staging, name, num_bytes, api.cudaMallocHost, api.cudaFreeHost)
        kind = api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _checked(api.cudaMemcpyAsync(here, there, num_bytes, kind, self.handle))
        memory = (ctypes.c_char * max(num_bytes, 1)).from_address(here)
        return np.ndarray(shape, dtype, memoryview(memory))

    def wait(self) -> None:
        """Returns when all work of the stream is done."""
        _checked(self._api.cudaStreamSynchronize(self.handle))

    def _grown(
        self, buffers: Buffers, name: str, num_bytes: int, allocate: Callable[[int], Any],
        free: Callable[[int], Any],
    ) -> int:  # fmt: skip
        address, size = buffers.get(name, (0, 0))
        if size < max(num_bytes, 1):
            # Ordered after the work of this stream that still uses the old one.
            self.wait()
            if address:
                _checked(free(address))
            buffers.pop(name, None)
            address = int(_checked(allocate(max(num_bytes, 1))))
            buffers[name] = address, max(num_bytes, 1)
        return address


def _free(api: Any, stream: int, buffers: Buffers, staging: Buffers) -> None:
    for address, _ in buffers.values():
        api.cudaFree(address)
    for address, _ in staging.values():
        api.cudaFreeHost(address)
    buffers.clear()
    staging.clear()
    api.cudaStreamDestroy(stream)


def _checked(answer: tuple[Any, ...]) -> Any:
    """The value of an answer ``(error, value)``.

    Raises:
        EngineError: with CUDA's name of the error.
    """
    error, *values = answer
    if int(error) != 0:
        raise EngineError(f"CUDA: {getattr(error, 'name', error)}")
    return values[0] if values else None
