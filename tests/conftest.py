import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.build import BuildOptions, build
from exporter.weights import Reference, WeightsSource, load_reference
from runtime.packing import PackedBatch

ARCHITECTURE = "esm2_t6_8M_UR50D"
LAYERS = (0, 3, 6)
COMMON_RESIDUES = "LAGVSERTIDPKQNFYMHWC"


@pytest.fixture(scope="session")
def reference() -> Reference:
    return load_reference(WeightsSource("synthetic", ARCHITECTURE))


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified artifact with several layers and a pooled output; tests must not change it."""
    folder = tmp_path_factory.mktemp("artifacts") / "tiny"
    options = BuildOptions(
        WeightsSource("synthetic", ARCHITECTURE), ("torchscript", "onnx"), LAYERS, "mean", folder
    )
    build(options, lambda line: None)
    return folder


def random_sequence(random: np.random.Generator, length: int) -> str:
    return "".join(random.choice(list(COMMON_RESIDUES), length))


@pytest.fixture
def sequences() -> list[str]:
    random = np.random.default_rng(7)
    drawn = [random_sequence(random, n) for n in (33, 5, 120, 61)]
    return [*drawn, "MK<mask>AYIA<mask>QR"]


@pytest.fixture
def batch(sequences: list[str]) -> PackedBatch:
    return PackedBatch.from_sequences(sequences)


@pytest.fixture
def tensors(batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``batch`` as the packed forward takes it."""
    return (
        torch.from_numpy(batch.input_ids),
        torch.from_numpy(batch.cu_seqlens),
        torch.tensor(batch.max_seqlen),
    )


BLOCKER = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture
def fresh_python() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs code in a new process in which the given packages cannot be imported."""

    def run(
        code: str, *arguments: object, blocked: tuple[str, ...] = (), **options: object
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", BLOCKER.format(blocked=blocked) + code]
        command += [str(argument) for argument in arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)

    yield run
