"""Engines for a card on a machine without one: all of their graph but the attention kernel."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import onnx

from exporter.publish import link_or_copy
from exporter.shared_weights import FILE_NAME as WEIGHTS_FILE
from exporter.targets.onnx_attention import ONNX_DTYPES
from exporter.targets.onnx_packed_attention import with_reference_attention
from runtime import manifest as manifests
from runtime.manifest import Manifest

# Engine -> the one that can run its graph here.
STAND_INS = {"onnx-cuda": "onnx"}


@contextmanager
def stand_in_artifact(
    folder: Path, manifest: Manifest, name: str
) -> Iterator[tuple[Path, Manifest]]:
    """The artifact with one engine, ``STAND_INS[name]``, which runs the graph of ``name``.

    Its packed attention is a function of standard ops; every other node, and the weights, are the
    engine's own.

    Args:
        folder: the artifact; a temporary folder is made beside it.
        manifest: of it.
        name: key of ``STAND_INS``.
    """
    entry = manifest.engines[name]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".without-card-") as temporary:
        copy = Path(temporary)
        model = onnx.load(folder / entry.file, load_external_data=False)
        shape = manifest.architecture
        dtype = ONNX_DTYPES[manifest.dtype]
        with_reference_attention(model, dtype, shape.num_heads, shape.head_dim)
        onnx.save(model, copy / entry.file)
        for file in (WEIGHTS_FILE, manifest.golden.file):
            link_or_copy(folder / file, copy / file)
        described = msgspec.structs.replace(manifest, engines={STAND_INS[name]: entry})
        manifests.write(described, copy)
        yield copy, described
