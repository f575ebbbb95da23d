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


# A CPU is busy with less. Of 650M in float16 an H200 runs 0.93 of its best with this, and 16,384
# tokens take 1 GB there.
_MAX_TOKENS = {"cpu": 4096, "cuda": 16_384}


def default_max_tokens(device: str) -> int:
    """The budget of a pack, where nobody says another."""
    return _MAX_TOKENS[kind_of(device)]


def check_device(device: str) -> None:
    """Raises EngineError unless ``device`` is ``auto`` or names a device."""
    if device not in ("auto", "cpu") and not _CARD.fullmatch(device):
        raise EngineError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
