"""``config.pbtxt`` by NVIDIA's published schema, which refuses what it does not know."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from google.protobuf import text_format


def _published_schema() -> ModuleType:
    """``model_config_pb2`` as NVIDIA publishes it in ``tritonclient``.

    By its path: importing it by its name imports grpc, which nothing here needs.
    """
    package = importlib.util.find_spec("tritonclient")
    assert package is not None and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCHEMA: Any = _published_schema()


def read_config(model: Path) -> Any:
    """The ``ModelConfig`` of a model's folder; raises where it does not follow the schema."""
    config = text_format.Parse((model / "config.pbtxt").read_text(), SCHEMA.ModelConfig())
    assert config.name == model.name
    return config
