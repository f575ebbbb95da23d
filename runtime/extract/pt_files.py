"""Files as ``torch.save`` writes them; nothing else of the runtime needs PyTorch for its output."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import InputError


def check_torch() -> None:
    """Raises InputError where PyTorch is not installed."""
    if find_spec("torch") is None:
        raise InputError(
            "cannot write .pt files: torch is not installed. pip install 'esm2-engines[torch]', or "
            "write another format with 'esm2-run embed'"
        )


class PtFiles:
    """Writes a file for each protein, which appears whole and replaces one of its name.

    Args:
        output: the folder.
        aside: a folder on the same file system.

    Attributes:
        count: files that were written.
        bytes: in them.
    """

    def __init__(self, output: Path, aside: Path):
        self.count = 0
        self.bytes = 0
        self._output = output
        self._aside = aside / "next.pt"

    def write(self, name: str, result: dict[str, Any]) -> None:
        """Writes ``result``, its arrays as tensors.

        A part of a larger array is saved alone, as the script's clones are: to PyTorch it is a
        storage of its own.

        Raises:
            OSError: the file system does not take it.
        """
        import torch

        with self._aside.open("wb") as file:
            torch.save(_with_tensors(result), file)
            self.bytes += file.tell()
        self._aside.replace(self._output / name)
        self.count += 1


def _with_tensors(value: Any) -> Any:
    import torch

    if isinstance(value, dict):
        return {key: _with_tensors(each) for key, each in value.items()}
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
