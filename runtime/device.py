"""Names of devices: ``cpu``, ``cuda`` for the first card, ``cuda:N`` for another."""

import re

from runtime.errors import EngineError

_CARD = re.compile(r"cuda(?::(\d+))?")


def kind_of(device: str) -> str:
    """``cpu`` or ``cuda``."""
    return device.partition(":")[0]


def index_of(device: str) -> int:
    """Of a card, among those that ``CUDA_VISIBLE_DEVICES`` leaves."""
    return int(device.partition(":")[2] or 0)


def check_device(device: str) -> None:
    """Raises EngineError unless ``device`` is ``auto`` or names a device."""
    if device not in ("auto", "cpu") and not _CARD.fullmatch(device):
        raise EngineError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
