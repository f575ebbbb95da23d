"""Memory of the card and copies to and from it, for an engine library that has none of its own.

By NVIDIA's bindings of the CUDA runtime, cuda-bindings, which needs no PyTorch.
"""

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import EngineError, UnsupportedError


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
        self._buffers: dict[str, tuple[int, int]] = {}
        # What is dropped without close() frees its memory too.
        self.close = weakref.finalize(self, _free, self._api, self.handle, self._buffers)

    def use_device(self) -> None:
        """Makes the stream's card the calling thread's own, which may be another's."""
        _checked(self._api.cudaSetDevice(self._device))

    def buffer(self, name: str, num_bytes: int) -> int:
        """The address of at least ``num_bytes`` on the card; what was in it may be lost."""
        address, size = self._buffers.get(name, (0, 0))
        if size < max(num_bytes, 1):
            # Ordered after the work of this stream that still reads the old one.
            self.wait()
            if address:
                _checked(self._api.cudaFree(address))
            self._buffers.pop(name, None)
            address = int(_checked(self._api.cudaMalloc(max(num_bytes, 1))))
            self._buffers[name] = address, max(num_bytes, 1)
        return address

    def send(self, name: str, array: NDArray[Any]) -> int:
        """Copies a contiguous array into the buffer ``name``; its address."""
        address = self.buffer(name, array.nbytes)
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        _checked(
            self._api.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self.handle)
        )
        return address

    def fetch(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Copies from the buffer ``name``; the array is filled after ``wait``."""
        array: NDArray[Any] = np.empty(shape, dtype)
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        address, _ = self._buffers[name]
        _checked(
            self._api.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self.handle)
        )
        return array

    def wait(self) -> None:
        """Returns when all work of the stream is done."""
        _checked(self._api.cudaStreamSynchronize(self.handle))


def _free(api: Any, stream: int, buffers: dict[str, tuple[int, int]]) -> None:
    for address, _ in buffers.values():
        api.cudaFree(address)
    buffers.clear()
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
