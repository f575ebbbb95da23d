"""Which engines a device has, and why one of them cannot run here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from benchmarks.gpu_check.packages import is_installed
from runtime.engines.tensorrt.library import LIBRARIES, import_library, known_cards
from runtime.engines.torch.aoti_cuda import capability_of_this_gpu
from runtime.errors import UnsupportedError


@dataclass(frozen=True)
class Candidate:
    """An engine format, as a check knows it.

    Attributes:
        devices: where it runs.
        why_not: ``why_not(dtype, device)``: one sentence, or empty if it can be built and run.
        is_compiled: building it is minutes of a compiler on the CPU, while another process of the
            same model computes the answers of eager fair-esm.
        is_tuned: its kernels are chosen by their time on the card, so nothing may run beside.
        waits: how one looks for moments in which the host waits for the card.
    """

    devices: tuple[str, ...]
    why_not: Callable[[str, str], str]
    is_compiled: bool = False
    is_tuned: bool = False
    waits: Literal["in a forward", "in the graph", "no way"] = "in a forward"

    @property
    def is_run_by_torch(self) -> bool:
        """Its forward can be run alone, with inputs and outputs on the card."""
        return self.waits == "in a forward"


def of_device(device: str) -> tuple[str, ...]:
    """The engines of a device, in the order in which they are built."""
    return tuple(name for name, known in ENGINES.items() if device in known.devices)


def why_not(engine: str, dtype: str, device: str) -> str:
    """One sentence, or empty if ``engine`` can be built and run in ``dtype`` on ``device``."""
    return ENGINES[engine].why_not(dtype, device)


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
    return _missing_for_cuda()


@cache
def _missing_for_cuda() -> str:
    """Asked once: a compiler answers."""
    from exporter.formats.aoti.toolkit import missing_for_cuda

    return missing_for_cuda()


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


ENGINES = {
    "torchscript": Candidate(("cuda", "cpu"), _torch),
    "onnx": Candidate(("cpu",), _onnx, waits="in the graph"),
    "onnx-cuda": Candidate(("cuda",), _onnx, waits="in the graph"),
    "aoti-cuda": Candidate(("cuda",), _compiled, is_compiled=True),
    "tensorrt": Candidate(("cuda",), _tensorrt, is_tuned=True, waits="no way"),
}
