"""AOTInductor: ``model.pt2``, and for CUDA ``model.cuda.pt2``."""

from exporter.formats.format import TORCH_LIBRARY, Format, lazily

_ROOM = "exporter.formats.aoti"
_observe = lazily(f"{_ROOM}.observe:observe")

AOTI = Format(
    name="aoti",
    export=lazily(f"{_ROOM}.export:export"),
    observe=_observe,
    op_library=TORCH_LIBRARY,
    own_faults=lazily("exporter.formats.contact_faults:contact_faults"),
)
AOTI_CUDA = Format(
    name="aoti-cuda",
    export=lazily(f"{_ROOM}.cuda:export"),
    observe=_observe,
    check=lazily(f"{_ROOM}.cuda:check"),
    op_library=TORCH_LIBRARY,
    own_faults=lazily("exporter.formats.contact_faults:contact_faults"),
)
