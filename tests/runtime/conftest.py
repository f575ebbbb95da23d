"""The runtime is the same for every size of model: here two layers stand for all."""

from pathlib import Path

import msgspec
import pytest

from exporter.model.reference import Reference, WeightsSource, load_reference
from exporter.publish import writable_copy
from runtime import manifest as manifests
from tests.conftest import MadeOnce


@pytest.fixture(scope="session")
def artifact(tiny_artifact: Path, made_once: MadeOnce) -> Path:
    """``tiny_artifact``, and that its weights are random, as they are."""

    def make(folder: Path) -> None:
        writable_copy(tiny_artifact, folder)
        manifest = manifests.read(folder)
        weights = msgspec.structs.replace(manifest.weights, kind="synthetic", seed=0)
        manifests.write(msgspec.structs.replace(manifest, weights=weights), folder)

    return made_once("synthetic", make)


@pytest.fixture(scope="session")
def reference(tiny_checkpoint: Path) -> Reference:
    """Of ``artifact``."""
    return load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))
