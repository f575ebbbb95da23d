"""TensorRT and TensorRT-RTX: a plan of ``tensorrt/``, built for one kind of card."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.device import index_of
from runtime.engine import EngineSpec, Settings
from runtime.engines import cuda_memory
from runtime.engines.base import PACKS_OF_A_CARD, FetchingEngine, spec_of
from runtime.engines.splitting import InParts, holding
from runtime.engines.tensorrt.kernels import Kernels
from runtime.engines.tensorrt.library import (
    BUILT_ON,
    LIBRARIES,
    choose_plan,
    collecting_logger,
    first_error,
    import_library,
    installed_versions,
    require_model,
    switch_profile,
)
from runtime.engines.tensorrt.refit import refit
from runtime.errors import EngineError, UnsupportedError
from runtime.manifest_schema import POOLED, EngineEntry, Manifest, PlanEntry, Profile
from runtime.packing import PackedBatch
from runtime.user_cache import default_folder
from runtime.weights import FILE_NAME as WEIGHTS_FILE

FORMAT = "tensorrt"


def library() -> str:
    """What runs plans; its version is a plan's."""
    return "TensorRT"


def unsupported_reasons(manifest: Manifest, device: str, settings: Settings) -> list[str]:
    """Why this engine cannot run so on ``device``, in sentences; empty if it can."""
    if device == "cpu":
        return ["it runs on CUDA alone"]
    try:
        _plan_for(device, manifest.engines[FORMAT])
    except UnsupportedError as error:
        return [str(error)]
    return _decided_when_built(settings)


def load(folder: Path, manifest: Manifest, device: str, settings: Settings) -> InParts:
    """See ``runtime.load``."""
    plan = _plan_for(device, manifest.engines[FORMAT])
    cuda_memory.use_card(index_of(device))
    trt, logger, engine = open_plan(folder, plan, manifest.engines[FORMAT].file)
    # Plans do not pool, InParts does.
    outputs = [output.name for output in manifest.signature.outputs if output.name != POOLED]
    named = LIBRARIES[plan.library][0]
    refused = "; ".join(f"{rung}: {why}" for rung, why in plan.refused.items())
    spec = spec_of(
        manifest,
        FORMAT,
        device=device,
        library=f"{named} {plan.version}",
        attention=f"{named} {plan.attention}",
        reason=refused,
    )
    digest = manifest.files[plan.file].sha256
    kernels = Kernels(default_folder() / "tensorrt-rtx" / f"{digest}.kernels")
    whole = TensorRTEngine(trt, logger, engine, spec, outputs, plan.profiles, kernels)
    return InParts(whole, plan.profiles, manifest.signature)


def open_plan(folder: Path, plan: PlanEntry, graph: str) -> tuple[Any, Any, Any]:
    """The library, its logger, and the ``ICudaEngine`` of a plan with its weights.

    Args:
        folder: of the artifact.
        plan: one of its plans.
        graph: name of the file that it was built from.

    Raises:
        UnsupportedError: the library is not installed.
        EngineError: it does not take the plan or the weights; the library's own sentence.
    """
    trt = import_library(plan.library)
    logger = collecting_logger(trt)
    engine = deserialize(trt, logger, folder / plan.file)
    if plan.refit:
        refit(trt, logger, engine, folder / WEIGHTS_FILE, folder / graph)
    return trt, logger, engine


def deserialize(trt: Any, logger: Any, path: Path) -> Any:
    """The ``ICudaEngine`` of a plan.

    Raises:
        EngineError: it is damaged, or for another card or version; the library's own sentence.
    """
    engine = trt.Runtime(logger).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise EngineError(
            f"{trt.__name__} {trt.__version__} cannot read {path}: {first_error(logger)}"
        )
    return engine


def _plan_for(device: str, entry: EngineEntry) -> PlanEntry:
    versions, card = installed_versions(entry.plans), index_of(device)
    plan = choose_plan(entry.plans, versions, cuda_memory.compute_capability(card))
    require_model(plan, entry.built_with.get(BUILT_ON), cuda_memory.model(card))
    return plan


def _decided_when_built(settings: Settings) -> list[str]:
    """What was asked for and cannot be had any more, in sentences."""
    reasons = []
    if settings.attention != "auto":
        reasons.append(
            f"with attention {settings.attention!r}: the plan was built with its own. Take "
            "attention 'auto', or another engine"
        )
    for asked, what in ((settings.tf32, "TF32"), (settings.cuda_graphs, "CUDA graphs")):
        if asked:
            reasons.append(f"with {what}: take engine 'onnx-cuda' or 'aoti-cuda'")
    return reasons


class TensorRTEngine(FetchingEngine):
    """An execution context that takes packs which one of its profiles holds."""

    def __init__(
        self, trt: Any, logger: Any, engine: Any, spec: EngineSpec, output_names: list[str],
        profiles: Sequence[Profile], kernels: Kernels,
    ):  # fmt: skip
        super().__init__(spec, output_names, PACKS_OF_A_CARD)
        self._trt = trt
        self._logger = logger
        self._engine = engine
        self._profiles = profiles
        self._stream = cuda_memory.Stream()
        # Its buffers and the context are of one pack at a time; other callers wait.
        self._one_at_a_time = threading.Lock()
        self._kernels = kernels
        self._context = kernels.context(trt, engine)
        self._require(self._context is not None, "cannot run its plan")

    def unsupported_reasons(self, batch: PackedBatch) -> list[str]:
        """See ``Engine``: a pack that no profile holds."""
        if holding(self._profiles, batch) is not None:
            return []
        return [
            f"no profile of the plan holds {batch.num_tokens} tokens, {batch.num_proteins} "
            f"proteins and a protein of {batch.max_seqlen} tokens"
        ]

    def _fetch(self, batch: PackedBatch, names: Sequence[str]) -> list[NDArray[np.floating]]:
        with self._one_at_a_time:
            arrays = self._fetch_alone(batch, names)
        # While the card has the next pack.
        return [widen_bfloat16(array) for array in arrays]

    def _fetch_alone(self, batch: PackedBatch, names: Sequence[str]) -> list[NDArray[Any]]:
        self.require_usable()
        context, stream = self._context, self._stream
        profile = holding(self._profiles, batch)
        if profile is None:
            raise UnsupportedError("; ".join(self.unsupported_reasons(batch)))
        self._logger.errors.clear()
        stream.use_device()
        pack = f"on a pack of {batch.num_proteins} proteins, {batch.num_tokens} tokens"
        if context.active_optimization_profile != profile:
            switched = switch_profile(context, profile, stream.handle)
            self._require(switched, f"could not switch to profile {profile} {pack}")
        # A shape tensor, read on the host while the work is queued.
        max_seqlen = np.array(batch.max_seqlen, np.int64)
        self._bind("max_seqlen", max_seqlen.ctypes.data)
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": np.ascontiguousarray(batch.input_ids),
            "cu_seqlens": np.ascontiguousarray(batch.cu_seqlens),
        }
        for name, array in inputs.items():
            self._require(context.set_input_shape(name, array.shape), f"refused {name} {pack}")
            self._bind(name, stream.send(name, array))
        shapes = {}
        for name in self._output_names:
            shape = shapes[name] = tuple(context.get_tensor_shape(name))
            self._require(min(shape) >= 0, f"cannot tell the shape of {name} {pack}")
            self._bind(name, stream.buffer(name, int(np.prod(shape)) * self._itemsize(name)))
        self._require(context.execute_async_v3(stream.handle), f"failed {pack}")
        fetched = [stream.fetch(name, shapes[name], self._dtype(name)) for name in names]
        stream.wait()
        self._kernels.keep_of(profile)
        return [array.copy() for array in fetched]

    def _bind(self, name: str, address: int) -> None:
        taken = self._context.set_tensor_address(name, address)
        self._require(taken, f"refused the address of {name}")

    def _require(self, succeeded: bool, otherwise: str) -> None:
        if not succeeded:
            raise EngineError(f"{self.spec.library} {otherwise}: {first_error(self._logger)}")

    def _itemsize(self, name: str) -> int:
        return int(self._engine.get_tensor_dtype(name).itemsize)

    def _dtype(self, name: str) -> np.dtype[Any]:
        dtype = self._engine.get_tensor_dtype(name)
        is_bfloat16 = dtype == self._trt.bfloat16
        return np.dtype(np.uint16 if is_bfloat16 else self._trt.nptype(dtype))

    def close(self) -> None:
        """See ``Engine.close``."""
        super().close()
        with self._one_at_a_time:  # a pack may be on its way, into memory that goes with the stream
            if self._context is not None:
                self._stream.close()
            self._context = self._engine = None


def widen_bfloat16(array: NDArray[Any]) -> NDArray[np.floating]:
    """Bits of bfloat16 (uint16) as float32, which holds each exactly; other arrays as they are."""
    if array.dtype != np.uint16:
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)
