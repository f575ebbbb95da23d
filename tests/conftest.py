import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.build import BuildOptions, build
from exporter.parity.cache import VARIABLE, Cache, default_folder
from exporter.synthetic import synthetic_state
from exporter.weights import Reference, WeightsSource, load_reference
from runtime.packing import PackedBatch

ARCHITECTURE = "esm2_t6_8M_UR50D"
LAYERS = (0, 3, 6)
COMMON_RESIDUES = "LAGVSERTIDPKQNFYMHWC"


# Two layers are enough where a test is about the gate and not about the model.
TINY = (2, 48, 4)


@pytest.fixture(scope="session", autouse=True)
def cache() -> Iterator[Cache]:
    """Eager fair-esm's answers of this session: commands in other processes share them."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[VARIABLE] = folder
        yield Cache(default_folder())
        del os.environ[VARIABLE]


@pytest.fixture(scope="session")
def reference() -> Reference:
    return load_reference(WeightsSource("synthetic", ARCHITECTURE))


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory, cache: Cache) -> Path:
    """A verified artifact with several layers and a pooled output; tests must not change it."""
    folder = tmp_path_factory.mktemp("artifacts") / "tiny"
    options = BuildOptions(
        WeightsSource("synthetic", ARCHITECTURE),
        ("torchscript", "onnx"),
        LAYERS,
        "mean",
        out=folder,
    )
    build(options, lambda line: None, cache)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, saved as fair-esm's are."""
    return save_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.pt", TINY)


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint: Path, cache: Cache) -> Path:
    """A verified artifact of ``tiny_checkpoint``; tests must not change it."""
    source = WeightsSource("checkpoint", str(tiny_checkpoint))
    folder = tiny_checkpoint.parent / "artifact"
    options = BuildOptions(source, ("torchscript", "onnx"), (0, 1, 2), "mean", out=folder)
    build(options, lambda line: None, cache)
    return folder


@pytest.fixture(scope="session")
def compiled_artifact(tiny_checkpoint: Path, cache: Cache) -> Path:
    """A verified artifact of ``tiny_checkpoint`` with AOTInductor alone; not to be changed."""
    source = WeightsSource("checkpoint", str(tiny_checkpoint))
    folder = tiny_checkpoint.parent / "compiled"
    build(BuildOptions(source, ("aoti",), (0, 1, 2), "mean", out=folder), lambda line: None, cache)
    return folder


def save_checkpoint(path: Path, shape: tuple[int, int, int], seed: int = 0) -> Path:
    """Random weights in a file as fair-esm's are."""
    import esm
    from esm.model.esm2 import ESM2

    num_layers, embed_dim, num_heads = shape
    with torch.device("meta"):
        model = ESM2(*shape, esm.data.Alphabet.from_architecture("ESM-1b"), token_dropout=True)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    state = synthetic_state(shapes, seed)
    state["lm_head.weight"] = state["embed_tokens.weight"]
    config = argparse.Namespace(
        encoder_layers=num_layers, encoder_embed_dim=embed_dim, encoder_attention_heads=num_heads,
        token_dropout=True,
    )  # fmt: skip
    named = {f"encoder.sentence_encoder.{name}": tensor for name, tensor in state.items()}
    torch.save({"cfg": {"model": config}, "model": named}, path)
    return path


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


# As where they are not installed: importing one fails, and importlib.util.find_spec finds none.
BLOCKER = "import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"


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
