"""Devices: ``cpu``, ``cuda`` for the first card, ``cuda:N`` for another; and their packs' size."""

import ctypes
import re
from functools import cache
from typing import TYPE_CHECKING

from runtime.errors import EngineError

if TYPE_CHECKING:
    from runtime.engine import EngineSpec

_CARD = re.compile(r"cuda(?::(\d+))?")


def kind_of(device: str) -> str:
    """``cpu`` or ``cuda``."""
    return device.partition(":")[0]


def index_of(device: str) -> int:
    """Of a card, among those that ``CUDA_VISIBLE_DEVICES`` leaves."""
    return int(device.partition(":")[2] or 0)


# A CPU is busy with less. Of 650M in float16 an H200 runs 0.93 of its best with this, and 16,384
# tokens take 1 GB there; of 3B in float32, 4 GB.
_MAX_TOKENS = {"cpu": 4096, "cuda": 16_384}
# From so many bytes on a card has memory for twice as many, beside 3B in float32.
_LARGE_CARD = 40 * 10**9
_MAX_TOKENS_OF_LARGE = 32_768
# The rule, for help texts.
MAX_TOKENS_RULE = (
    f"{_MAX_TOKENS['cpu']}, on a card {_MAX_TOKENS['cuda']}, from {_LARGE_CARD // 10**9} GB on "
    f"{_MAX_TOKENS_OF_LARGE} where the artifact was proven with them"
)


def least_max_tokens(device: str) -> int:
    """The budget of a pack, where nobody says another and no engine is loaded yet."""
    return _MAX_TOKENS[kind_of(device)]


def default_max_tokens(spec: "EngineSpec") -> int:
    """The budget of a pack of a loaded engine, where nobody says another.

    Never beyond what it was compared with fair-esm on, of which the runner would warn.
    """
    least = least_max_tokens(spec.device)
    proven = spec.domain.tokens if spec.domain else least
    return max(least, min(largest_max_tokens(spec.device), proven))


def largest_max_tokens(device: str) -> int:
    """The budget of a pack that the device has memory for."""
    is_large = kind_of(device) == "cuda" and memory_of_card(index_of(device)) >= _LARGE_CARD
    return _MAX_TOKENS_OF_LARGE if is_large else least_max_tokens(device)


@cache
def memory_of_card(index: int) -> int:
    """Bytes in all, by NVIDIA's driver; 0 where it cannot be asked.

    To be asked in a process that has loaded an engine for CUDA: it starts the driver, after which
    a fork of the process cannot use any card.

    Args:
        index: among those that ``CUDA_VISIBLE_DEVICES`` leaves.
    """
    card, size = ctypes.c_int(), ctypes.c_size_t()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(card), index)
            or driver.cuDeviceTotalMem_v2(ctypes.byref(size), card)
        )
    except (OSError, AttributeError):  # it is not there, or not NVIDIA's
        return 0
    return 0 if failed else size.value


def check_device(device: str) -> None:
    """Raises EngineError unless ``device`` is ``auto`` or names a device."""
    if device not in ("auto", "cpu") and not _CARD.fullmatch(device):
        raise EngineError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
