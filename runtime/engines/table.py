"""The formats of engines, and on which device each is tried in which order."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """An engine format.

    Attributes:
        name: in manifests and on command lines.
        module: has ``unsupported_reasons(manifest, device, settings)``, ``load(folder, manifest,
            device, settings)`` and ``library()``; imports its library when it loads.
        by_name_only: why ``"auto"`` never takes it; empty if it may.
        shares_cores: on a CPU it can run several packs at once.
    """

    name: str
    module: str
    by_name_only: str = ""
    shares_cores: bool = False


FORMATS: dict[str, Format] = {
    known.name: known
    for known in (
        Format("aoti-cuda", "runtime.engines.torch.aoti_cuda"),
        Format("onnx-cuda", "runtime.engines.onnx.cuda"),
        Format("tensorrt", "runtime.engines.tensorrt.engine"),
        Format("torchscript", "runtime.engines.torch.torchscript"),
        Format("onnx", "runtime.engines.onnx.cpu", shares_cores=True),
        Format("aoti", "runtime.engines.torch.aoti"),
        Format(
            "onnx-int8",
            "runtime.engines.onnx.int8",
            by_name_only="is coarser, so it must be asked for by name",
            shares_cores=True,
        ),
    )
}

# What "auto" tries, fastest first.
BY_SPEED = {
    "cuda": ("aoti-cuda", "onnx-cuda", "tensorrt", "torchscript", "onnx"),
    "cpu": ("onnx", "aoti", "torchscript"),
}
