"""What compiled code shows: the attention op, which it calls through PyTorch's dispatcher."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.formats.aoti.rotation import positions_in
from exporter.formats.dispatcher import Spy
from exporter.formats.format import Observed
from runtime.manifest_schema import Manifest
from runtime.packing import PackedBatch


@contextmanager
def observe(folder: Path, manifest: Manifest, batch: PackedBatch) -> Iterator[Observed]:
    """See ``Format.observe``. Positions are read from the first layer's queries."""
    with Spy(manifest.architecture.head_dim // 2) as spy:
        yield spy.seen
    if spy.first_queries is not None:
        spy.seen.positions.append(positions_in(spy.first_queries, folder, manifest, batch))
