"""``model.ts``: the packed forward traced to TorchScript, its parameters left out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from exporter.formats.archive import rewrite
from exporter.formats.tracing import tracing_pack
from exporter.model.packed_forward import PackedESM2
from runtime.manifest_schema import EngineEntry

FILE_NAME = "model.ts"


def export(packed: PackedESM2, folder: Path) -> EngineEntry:
    """Traces ``packed`` into ``folder``.

    Args:
        packed: on the CPU, in the dtype to export.
        folder: where ``model.ts`` goes.
    """
    with torch.no_grad():
        traced = torch.jit.trace(packed, tracing_pack(), check_trace=False)
    path = folder / FILE_NAME
    with _parameters_stripped(traced):
        traced.save(str(path))
    drop_debug_records(path)
    return EngineEntry(
        file=FILE_NAME,
        lowering="esm2::varlen_attention",
        built_with={"torch": str(torch.__version__)},
    )


@contextmanager
def _parameters_stripped(module: torch.jit.ScriptModule) -> Iterator[None]:
    """Replaces every parameter by one NaN, expanded to its shape: 4 bytes in the file.

    ``PackedESM2`` refuses to run while it sees such a parameter.
    """
    parameters = dict(module.named_parameters())
    kept = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.data = torch.full((), torch.nan, dtype=parameter.dtype).expand(
                parameter.shape
            )
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = kept[name]


def drop_debug_records(path: Path) -> None:
    """Removes the records with source lines: they hold this machine's paths."""
    rewrite(path, lambda name, data: None if name.endswith(".debug_pkl") else data)
