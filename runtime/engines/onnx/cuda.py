"""ONNX Runtime on CUDA: ``model.ort-cuda.onnx``, with packed attention and tensors on the card."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.attention import Attention
from runtime.device import index_of, kind_of
from runtime.engine import EngineSpec, Settings
from runtime.engines.base import PACKS_OF_A_CARD, check_pools, representations, spec_of
from runtime.engines.onnx import cpu as onnx
from runtime.engines.onnx.cpu import OnnxEngine, feeds_of, library
from runtime.engines.onnx.on_card import on_card, places_of, run_on_card
from runtime.manifest_schema import Manifest
from runtime.packing import PackedBatch
from runtime.pooling import Pool

FORMAT = "onnx-cuda"

# Bits of the provider's option sdpa_kernel (onnxruntime, contrib_ops/cpu/bert/attention_common.h).
_FLASH, _EFFICIENT, _MATH = 1, 2, 16
# Never TensorRT's fused kernels, which ONNX Runtime would take by default for short proteins in
# float16: they add in float16. Named bits also lower the flash kernel's least length to 0.
SDPA_KERNELS: dict[Attention, int] = {
    "auto": _FLASH | _EFFICIENT | _MATH,
    "flash": _FLASH | _MATH,
    "memory-efficient": _EFFICIENT | _MATH,
    "standard": _MATH,
}


def unsupported_reasons(manifest: Manifest, device: str, settings: Settings) -> list[str]:
    """Why this engine cannot run so on ``device``, in sentences; empty if it can."""
    if device == "cpu":
        return ["it runs on CUDA alone"]
    if reason := onnx.missing_library() or onnx.missing_provider():
        return [reason]
    kernel, why = _attention(manifest, settings.attention)
    refused = [] if kernel else [f"with attention {settings.attention!r}: {why}"]
    return refused + onnx.no_cuda_graphs(settings)


def load(folder: Path, manifest: Manifest, device: str, settings: Settings) -> "OnnxCudaEngine":
    """See ``runtime.load``."""
    options = onnx.session_options(settings.threads.total, device)
    cuda = {**onnx.provider_options(device, settings), **kernel_options(settings.attention)}
    entry = manifest.engines[FORMAT]
    session = onnx.open_session(folder / entry.file, options, cuda)
    pooling = None if entry.pooling is None else folder / entry.pooling
    names = [output.name for output in manifest.signature.outputs]
    kernel, why = _attention(manifest, settings.attention)
    return OnnxCudaEngine(
        session,
        spec_of(manifest, FORMAT, device=device, library=library(), attention=kernel, reason=why),
        names,
        None if pooling is None else partial(onnx.open_session, pooling, options, cuda),
    )


def kernel_options(attention: Attention) -> dict[str, str]:
    """Of ONNX Runtime's CUDA provider: how its kernels compute."""
    return {
        "sdpa_kernel": str(SDPA_KERNELS[attention]),
        # SkipLayerNormalization adds up in float32, whatever the number of columns.
        "enable_skip_layer_norm_strict_mode": "1",
    }


def _attention(manifest: Manifest, requested: Attention) -> tuple[str, str]:
    """The kernel of ONNX Runtime and why not a faster one; no name where it cannot be had."""
    if requested not in SDPA_KERNELS:
        return "", f"ONNX Runtime has its own kernels, take one of {', '.join(SDPA_KERNELS)}"
    no_flash = f"flash: needs float16, got {manifest.dtype}"
    if requested == "flash" and manifest.dtype != "float16":
        return "", no_flash
    asked = f"attention {requested!r} was asked for"
    if requested == "auto":
        asked = ""
    if requested == "standard":
        return "onnxruntime standard", asked
    if manifest.dtype == "float16" and requested != "memory-efficient":
        return "onnxruntime flash (memory-efficient below compute capability 8.0)", asked
    return "onnxruntime memory-efficient", asked or no_flash


class OnnxCudaEngine(OnnxEngine):
    """Outputs stay on the card but for those that were asked for.

    Args:
        session: of the model's graph.
        spec: see ``Engine``.
        output_names: of the graph.
        open_pooling: gives a session of the graph for pooling; None: the host pools.
    """

    def __init__(
        self, session: Any, spec: EngineSpec, output_names: list[str],
        open_pooling: Callable[[], Any] | None = None,
    ):  # fmt: skip
        super().__init__(session, spec, output_names, PACKS_OF_A_CARD)
        self._card = kind_of(spec.device), index_of(spec.device)
        self._open_pooling = open_pooling
        self._pooling: Any = None
        # Of the forward alone: what it gave is copied and pooled beside the next one.
        self._lock = threading.Lock()

    def embed_several(
        self, batch: PackedBatch, wanted: Sequence[tuple[int, Pool]]
    ) -> list[NDArray[np.floating]]:
        """See ``Engine.embed_several``. The graph pools as it was exported to, if that is asked."""
        check_pools(wanted)
        if list(wanted) == [(self.spec.layers[-1], self.spec.pool)]:
            return self._fetch(batch, ["pooled"])
        poolings = {how for _, how in wanted if how != "none"}
        if not poolings or self._open_pooling is None:
            return super().embed_several(batch, wanted)
        with self._running(batch):
            with self._lock:
                pooling = self._pooling = self._pooling or self._open_pooling()
            # Before the forward, behind which the card would wait.
            places = {
                how: on_card(places_of(batch.cu_seqlens, how), self._card) for how in poolings
            }
            outputs = self._run_on_card(feeds_of(batch), representations(wanted))
            found = []
            for layer, how in wanted:
                value = outputs[f"representations.{layer}"]
                if how != "none":
                    feeds = {**places[how], "rows": value}
                    value = run_on_card(pooling, feeds, ["pooled"], self._card)["pooled"]
                found.append(value.numpy())
            return found

    def _run_session(
        self, feeds: dict[str, NDArray[Any]], names: Sequence[str]
    ) -> list[NDArray[np.floating]]:
        outputs = self._run_on_card(feeds, names)
        return [outputs[name].numpy() for name in names]

    def _run_on_card(self, feeds: dict[str, NDArray[Any]], names: Sequence[str]) -> dict[str, Any]:
        """Of the outputs these stay on the card; the others are given back, to the next pack."""
        there = on_card(feeds, self._card)
        with self._lock:
            outputs = run_on_card(self._session, there, self._output_names, self._card)
        return {name: outputs[name] for name in names}

    def close(self) -> None:
        """See ``Engine.close``."""
        super().close()
        self._pooling = None
