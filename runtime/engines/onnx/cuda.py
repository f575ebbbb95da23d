"""ONNX Runtime on CUDA: ``model.ort-cuda.onnx``, with packed attention and tensors on the card."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.attention import Attention
from runtime.device import index_of, kind_of
from runtime.engine import EngineSpec, Settings
from runtime.engines.base import spec_of
from runtime.engines.onnx import cpu as onnx
from runtime.engines.onnx.cpu import OnnxEngine, library
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
    cuda = {
        **onnx.provider_options(device, settings),
        "sdpa_kernel": str(SDPA_KERNELS[settings.attention]),
        # SkipLayerNormalization adds up in float32, whatever the number of columns.
        "enable_skip_layer_norm_strict_mode": "1",
    }
    session = onnx.open_session(folder / manifest.engines[FORMAT].file, options, cuda)
    names = [output.name for output in manifest.signature.outputs]
    kernel, why = _attention(manifest, settings.attention)
    return OnnxCudaEngine(
        session,
        spec_of(manifest, FORMAT, device=device, library=library(), attention=kernel, reason=why),
        names,
    )


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
    """Outputs stay on the card but for those that were asked for."""

    def __init__(self, session: Any, spec: EngineSpec, output_names: list[str]):
        super().__init__(session, spec, output_names, concurrency=1)

    def embed(self, batch: PackedBatch, layer: int, how: Pool) -> NDArray[np.floating]:
        """See ``Engine.embed``. The graph pools where it was exported to, as it was asked to."""
        if how == self.spec.pool and layer == self.spec.layers[-1]:
            return self._fetch(batch, ["pooled"])[0]
        return super().embed(batch, layer, how)

    def _run_session(
        self, feeds: dict[str, NDArray[Any]], names: list[str]
    ) -> list[NDArray[np.floating]]:
        import onnxruntime

        binding = self._session.io_binding()
        card = kind_of(self.spec.device), index_of(self.spec.device)
        for name, array in feeds.items():
            # The host reads max_seqlen: it is a size.
            if name == "max_seqlen":
                binding.bind_cpu_input(name, array)
            else:
                there = onnxruntime.OrtValue.ortvalue_from_numpy(array, *card)
                binding.bind_ortvalue_input(name, there)
        for name in self._output_names:
            binding.bind_output(name, *card)
        self._session.run_with_iobinding(binding)
        outputs = dict(zip(self._output_names, binding.get_outputs(), strict=True))
        return [outputs[name].numpy() for name in names]
