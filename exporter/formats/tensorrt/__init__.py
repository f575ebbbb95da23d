"""TensorRT: an ONNX file of standard ops, and plans for kinds of cards."""

from exporter.formats.format import Format, lazily

_ROOM = "exporter.formats.tensorrt"

TENSORRT = Format(
    name="tensorrt",
    export=lazily(f"{_ROOM}.export:export"),
    observe=lazily(f"{_ROOM}.observe:observe"),
    check=lazily(f"{_ROOM}.export:check"),
    stand_in=lazily(f"{_ROOM}.stand_in:stand_in"),
    without_contacts="a plan holds no attention maps",
)
