"""Engines for a card on a machine without one: all of their graph but the attention kernel."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import onnx

from exporter.formats.format import StandIn
from exporter.publish import link_or_copy
from runtime import manifest as manifests
from runtime.manifest_schema import EMBEDDING, Manifest, Profile, Signature
from runtime.staging import staging, temporary_folder
from runtime.weights import FILE_NAME as WEIGHTS_FILE

RUNS_AS = "onnx"


@contextmanager
def running_as_onnx(
    folder: Path, manifest: Manifest, name: str, model: onnx.ModelProto,
    profiles: Sequence[Profile] = (),
) -> Iterator[StandIn]:  # fmt: skip
    """An artifact with one engine, ``onnx``, whose graph is ``model``.

    Args:
        folder: the artifact; only read. A temporary folder is made beside it, where links to its
            weights are possible, or elsewhere, with a copy, where that place cannot be written.
        manifest: of it.
        name: the engine that cannot run here.
        model: its graph, of ops that the format ``onnx`` runs.
        profiles: see ``StandIn``.
    """
    entry = manifest.engines[name]
    with folder_beside(folder) as copy:
        onnx.save(model, copy / entry.file)
        for file in filter(None, (WEIGHTS_FILE, manifest.golden.file, entry.pooling)):
            link_or_copy(folder / file, copy / file)
        described = msgspec.structs.replace(manifest, engines={RUNS_AS: entry, name: entry})
        signature = _signature_of(model, manifest)
        given = {EMBEDDING, *(output.name for output in signature.outputs)}
        limits = {name: limit for name, limit in manifest.golden.limits.items() if name in given}
        of_graph = msgspec.structs.replace(
            manifest, engines={RUNS_AS: entry}, signature=signature,
            golden=msgspec.structs.replace(manifest.golden, limits=limits, own_limits={}),
        )  # fmt: skip
        manifests.write(of_graph, copy)
        yield StandIn(copy, described, RUNS_AS, tuple(profiles))


@contextmanager
def folder_beside(artifact: Path) -> Iterator[Path]:
    """A temporary folder beside the artifact, or elsewhere where that place cannot be written."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(staging(artifact.resolve()))
            folder.mkdir()
        except OSError:
            folder = stack.enter_context(temporary_folder("without-card"))
        yield folder


def _signature_of(model: onnx.ModelProto, manifest: Manifest) -> Signature:
    """The manifest's, with the outputs that the graph has: TensorRT's does not pool."""
    names = {output.name for output in model.graph.output}
    outputs = [output for output in manifest.signature.outputs if output.name in names]
    return msgspec.structs.replace(manifest.signature, outputs=outputs)
