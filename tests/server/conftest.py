"""What is served."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exporter.build import BuildOptions, build
from exporter.model.reference import WeightsSource
from exporter.model.sources.probe import ProbeSource
from exporter.parity.truth.cache import Cache
from tests.conftest import MadeOnce


@pytest.fixture(scope="session")
def served_artifact(tiny_checkpoint: Path, made_once: MadeOnce, cache: Cache) -> Path:
    """All that can be asked for: several layers, contacts, a head of three labels."""

    def make(folder: Path) -> None:
        probe = folder.parent / "probe.npz"
        weight = np.random.default_rng(0).normal(size=(3, 48))
        np.savez(probe, weight=weight, bias=np.ones(3), classes=np.array(["a", "b", "c"]))
        source = WeightsSource("checkpoint", str(tiny_checkpoint), contacts=True)
        source = replace(source, probe=ProbeSource(str(probe), "mean"))
        build(BuildOptions(source, ("onnx",), (1, 2), out=folder), lambda line: None, cache)

    return made_once("served", make)
