"""What ``make fuzz`` changes: two layers, all that a model can be asked, each engine."""

import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np

from exporter.build import BuildOptions, build
from exporter.formats.aoti.export import OPTIONS
from exporter.model.reference import WeightsSource
from exporter.model.sources.probe import ProbeSource
from exporter.parity.truth.cache import Cache
from runtime.user_cache import default_folder
from tests.conftest import LABELS, TINY, few_packs, save_checkpoint

TARGETS = ("torchscript", "onnx", "aoti")


def main(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    probe, checkpoint = (folder.with_name(f"{folder.name}.{end}") for end in ("npz", "pt"))
    weight = np.random.default_rng(0).normal(size=(len(LABELS), TINY[1]))
    np.savez(probe, weight=weight, bias=np.ones(len(LABELS)), classes=np.array(LABELS))
    source = WeightsSource(
        "checkpoint", str(save_checkpoint(checkpoint, TINY)), contacts=True,
        probe=ProbeSource(str(probe), "mean"),
    )  # fmt: skip
    with (
        patch("exporter.parity.verify.parity_packs", few_packs),
        patch("exporter.build.parity_packs", few_packs),
        patch.dict(OPTIONS, {"aot_inductor.compile_wrapper_opt_level": "O0"}),
    ):
        build(
            BuildOptions(source, TARGETS, (1, 2), "mean", out=folder),
            print,
            Cache(default_folder()),
        )
    probe.unlink()
    checkpoint.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
