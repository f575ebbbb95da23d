"""Puts ``aoti-cuda`` into an artifact, with the stand-in as the card it is compiled for.

``python -m tests.cuda.compile ARTIFACT CHECKPOINT``; prints what the kernels of a layer read and
write (``tests.cuda.traffic``), by Inductor's own account.
"""

import sys
from operator import methodcaller
from pathlib import Path

import click
import msgspec
import torch
from torch._inductor import graph

from exporter.formats.aoti import cuda
from exporter.model.packed_forward import PackedESM2
from exporter.model.reference import WeightsSource, load_reference
from runtime import manifest as manifests
from tests.cuda.traffic import TOKENS, Step, of_a_layer


def main() -> None:
    """Prints the figure."""
    folder, checkpoint = Path(sys.argv[1]), sys.argv[2]
    manifest = manifests.read(folder, check_files=False)
    model = load_reference(WeightsSource("checkpoint", checkpoint)).model
    packed = PackedESM2(model, manifest.layers, "mean")
    steps: list[Step] = []
    accesses = methodcaller(
        "get_read_write_buffer_accesses", include_reads=True, include_writes=True
    )
    lowered = graph.GraphLowering.codegen_with_cpp_wrapper

    def counted(self: graph.GraphLowering) -> object:
        result = lowered(self)
        # Inductor tunes for a pack of another size.
        tokens = sum(cuda.TYPICAL_PACK)
        wide = tokens * manifest.architecture.embed_dim * 2
        steps[:] = [
            (
                str(getattr(node.node, "op_overload", "")),
                [size * TOKENS // tokens for size in accesses(node).values() if size >= wide],
            )
            for node in self.scheduler.nodes
        ]
        return result

    graph.GraphLowering.codegen_with_cpp_wrapper = counted
    entry = cuda.export(packed.to(getattr(torch, manifest.dtype)), folder)
    engines = {**manifest.engines, "aoti-cuda": entry}
    # Who loads it does not check files.
    files = {**manifest.files, entry.file: manifest.files["model.ts"]}
    manifests.write(msgspec.structs.replace(manifest, engines=engines, files=files), folder)
    click.echo(f"{of_a_layer(steps, manifest.architecture.embed_dim, 2):.1f}")


if __name__ == "__main__":
    main()
