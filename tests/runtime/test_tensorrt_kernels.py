"""Where compiled kernels of TensorRT-RTX are kept; its own objects exist on a card alone."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.engines.tensorrt.kernels import Kernels
from runtime.engines.tensorrt.library import import_library

trt = import_library("tensorrt_rtx")


class Engine:
    """An engine that compiles a kernel more at each ``serialize``, unless it was given some."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(
            set_execution_context_allocation_strategy=lambda strategy: None,
            create_runtime_cache=lambda: self,
            set_runtime_cache=lambda cache: None,
        )
        self.compiled = b"kernels"
        self.taken: list[bytes] = []

    def create_runtime_config(self) -> SimpleNamespace:
        return self.config

    def create_execution_context(self, given: object) -> object:
        return given

    def deserialize(self, blob: bytes) -> bool:
        self.taken.append(blob)
        return blob == self.compiled

    def serialize(self) -> bytes:
        return self.compiled


def test_the_next_start_is_given_what_was_compiled(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "plan.kernels"
    first, second = Engine(), Engine()
    kernels = Kernels(path)
    kernels.context(trt, first)
    kernels.keep_of(0)
    assert path.read_bytes() == first.compiled
    assert list(path.parent.iterdir()) == [path]
    Kernels(path).context(trt, second)
    assert (first.taken, second.taken) == ([], [first.compiled])


def test_no_kernel_is_compiled_for_one_shape(tmp_path: Path) -> None:
    context = Kernels(tmp_path / "x").context(trt, Engine())
    strategy = context.dynamic_shapes_kernel_specialization_strategy
    assert strategy == trt.DynamicShapesKernelSpecializationStrategy.NONE


def test_written_once_a_profile_and_only_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "plan.kernels"
    engine = Engine()
    kernels = Kernels(path)
    kernels.context(trt, engine)
    kernels.keep_of(0)
    engine.compiled = b"more kernels"
    kernels.keep_of(0)
    assert path.read_bytes() == b"kernels"
    kernels.keep_of(1)
    assert path.read_bytes() == b"more kernels"
    written = path.stat().st_ino
    kernels.keep_of(2)
    assert path.stat().st_ino == written


def test_what_another_card_wrote_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "plan.kernels"
    path.write_bytes(b"of another card")
    kernels = Kernels(path)
    kernels.context(trt, Engine())
    kernels.keep_of(0)
    assert path.read_bytes() == b"kernels"


@pytest.mark.parametrize("place", ["a folder is a file", "no home"])
def test_a_place_that_cannot_be_used_costs_nothing_else(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    folders = {"a folder is a file": tmp_path / "file", "no home": Path(os.devnull)}
    engine = Engine()
    kernels = Kernels(folders[place] / "esm2-engines" / "plan.kernels")
    assert kernels.context(trt, engine) is engine.config
    kernels.keep_of(0)
    assert engine.taken == []


def test_tensorrt_has_none_to_keep(tmp_path: Path) -> None:
    path = tmp_path / "plan.kernels"
    strategies = trt.ExecutionContextAllocationStrategy
    kernels = Kernels(path)
    proper = SimpleNamespace(ExecutionContextAllocationStrategy=strategies)
    assert kernels.context(proper, Engine()) == strategies.ON_PROFILE_CHANGE
    kernels.keep_of(0)
    assert not path.exists()
