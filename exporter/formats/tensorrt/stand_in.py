"""TensorRT's graph on a CPU: it is of standard ops as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from exporter.formats.format import StandIn
from exporter.formats.stand_in import running_as_onnx
from exporter.formats.tensorrt import TENSORRT
from exporter.formats.tensorrt.options import profiles_of
from runtime.manifest_schema import Manifest

# Of attention written out, which keeps all scores: half a GiB in float32, several times.
CPU_SCORES = 1 << 27


@contextmanager
def stand_in(folder: Path, manifest: Manifest) -> Iterator[StandIn]:
    """See ``Format.stand_in``. Packs are split as for a plan."""
    entry = manifest.engines[TENSORRT.name]
    model = onnx.load(folder / entry.file, load_external_data=False)
    heads = manifest.architecture.num_heads
    largest = [plan.profiles[-1] for plan in entry.plans[:1]]
    profiles = [
        profile
        for last in largest
        for profile in profiles_of("masked", last.max_tokens, last.max_seqlen, heads, CPU_SCORES)
    ]
    with running_as_onnx(folder, manifest, TENSORRT.name, model, profiles) as found:
        yield found
