"""Engines for a card on a machine without one: all of their graph but the attention kernel."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import onnx

from exporter.publish import link_or_copy
from exporter.targets.onnx_attention import ONNX_DTYPES
from exporter.targets.onnx_packed_attention import with_reference_attention
from exporter.targets.plan_options import profiles_of
from runtime import manifest as manifests
from runtime.manifest import Manifest, Profile, Signature
from runtime.staging import staging, temporary_folder
from runtime.weights_file import FILE_NAME as WEIGHTS_FILE

# Of attention written out: half a GiB in float32, several times.
CPU_SCORES = 1 << 27

# Engine -> the one that can run its graph here.
STAND_INS = {"onnx-cuda": "onnx", "tensorrt": "onnx"}


@contextmanager
def stand_in_artifact(
    folder: Path, manifest: Manifest, name: str
) -> Iterator[tuple[Path, Manifest]]:
    """The artifact with one engine, ``STAND_INS[name]``, which runs the graph of ``name``.

    ``onnx-cuda``'s packed attention becomes a function of standard ops; every other node, and the
    weights, are the engine's own. ``tensorrt``'s graph is of standard ops as it is.

    Args:
        folder: the artifact; only read. A temporary folder is made beside it, where links to its
            weights are possible, or elsewhere, with a copy, where that place cannot be written.
        manifest: of it.
        name: key of ``STAND_INS``.
    """
    entry = manifest.engines[name]
    with _folder_for(folder) as copy:
        model = onnx.load(folder / entry.file, load_external_data=False)
        shape = manifest.architecture
        dtype = ONNX_DTYPES[manifest.dtype]
        if name == "onnx-cuda":
            with_reference_attention(model, dtype, shape.num_heads, shape.head_dim)
        onnx.save(model, copy / entry.file)
        for file in (WEIGHTS_FILE, manifest.golden.file):
            link_or_copy(folder / file, copy / file)
        described = msgspec.structs.replace(
            manifest, engines={STAND_INS[name]: entry}, signature=_signature_of(model, manifest)
        )
        manifests.write(described, copy)
        yield copy, described


@contextmanager
def _folder_for(artifact: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(staging(artifact.resolve()))
            folder.mkdir()
        except OSError:
            folder = stack.enter_context(temporary_folder("without-card"))
        yield folder


def profiles_here(manifest: Manifest, name: str) -> list[Profile]:
    """Of an engine with plans, for a CPU, which keeps all scores; others have none."""
    largest = [plan.profiles[-1] for plan in manifest.engines[name].plans[:1]]
    heads = manifest.architecture.num_heads
    return [
        profile
        for last in largest
        for profile in profiles_of("masked", last.max_tokens, last.max_seqlen, heads, CPU_SCORES)
    ]


def _signature_of(model: onnx.ModelProto, manifest: Manifest) -> Signature:
    """The manifest's, with the outputs that the graph has: TensorRT's does not pool."""
    names = {output.name for output in model.graph.output}
    outputs = [output for output in manifest.signature.outputs if output.name in names]
    return msgspec.structs.replace(manifest.signature, outputs=outputs)
