"""TorchScript: ``model.ts``."""

from exporter.formats.format import TORCH_LIBRARY, Format, TritonBackend, lazily

_ROOM = "exporter.formats.torchscript"

TORCHSCRIPT = Format(
    name="torchscript",
    export=lazily(f"{_ROOM}.export:export"),
    observe=lazily("exporter.formats.dispatcher:observe"),
    op_library=TORCH_LIBRARY,
    own_faults=lazily("exporter.formats.contact_faults:contact_faults"),
    triton=TritonBackend("pytorch", lazily(f"{_ROOM}.triton:write"), needs_op_library=True),
)
