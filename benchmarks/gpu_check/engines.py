"""Which engines a device has, and why one of them cannot run here."""

from collections.abc import Callable

from benchmarks.gpu_check.packages import is_installed
from runtime.engines.tensorrt.library import LIBRARIES, import_library, known_cards
from runtime.engines.torch.aoti_cuda import capability_of_this_gpu
from runtime.errors import UnsupportedError

# Of a device, in the order in which they are built.
OF_DEVICE = {
    "cuda": ("torchscript", "onnx-cuda", "aoti-cuda", "tensorrt"),
    "cpu": ("torchscript", "onnx"),
}


def why_not(engine: str, dtype: str, device: str) -> str:
    """One sentence, or empty if ``engine`` can be built and run in ``dtype`` on ``device``."""
    return CHECKS[engine](dtype, device)


def _torch(dtype: str, device: str) -> str:
    return ""


def _onnx(dtype: str, device: str) -> str:
    import onnxruntime

    if not is_installed("onnxscript"):
        return "onnxscript is not installed"
    available = onnxruntime.get_available_providers()
    if device == "cuda" and "CUDAExecutionProvider" not in available:
        return f"this onnxruntime has no CUDAExecutionProvider, it has {', '.join(available)}"
    if dtype == "bfloat16":
        kernel = "packed attention" if device == "cuda" else "kernels for CPUs"
        return f"onnxruntime has no {kernel} in bfloat16"
    return ""


def _compiled(dtype: str, device: str) -> str:
    return "" if is_installed("triton") else "triton, which compiles for GPUs, is not installed"


def _tensorrt(dtype: str, device: str) -> str:
    if not is_installed("cuda"):
        return "cuda-bindings is not installed"
    problems = []
    for module, (name, _) in LIBRARIES.items():
        try:
            trt = import_library(module)
        except UnsupportedError as error:
            problems.append(str(error))
            continue
        card, known = capability_of_this_gpu(), known_cards(trt)
        if not known or card in known:
            return ""
        problems.append(f"{name} {trt.__version__} does not build for compute capability {card}")
    return "; ".join(problems)


CHECKS: dict[str, Callable[[str, str], str]] = {
    "torchscript": _torch,
    "onnx": _onnx,
    "onnx-cuda": _onnx,
    "aoti-cuda": _compiled,
    "tensorrt": _tensorrt,
}
