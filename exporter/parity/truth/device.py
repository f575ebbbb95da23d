"""Where eager fair-esm runs: on the CPU, or on a GPU that a user asked for."""

import torch

from exporter.errors import ExportError
from runtime.threads import usable_memory

DEVICES = ("auto", "cpu", "cuda")


def reference_device(device: str) -> str:
    """``"cuda"`` where just that was asked for, else ``"cpu"``.

    Args:
        device: ``"auto"`` chooses for engines alone (see ``runtime.load``): the truth moves to
            another device on request only.

    Raises:
        ExportError: there is no such device, or none here.
    """
    if device not in DEVICES:
        raise ExportError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if device != "cuda":
        return "cpu"
    if not torch.cuda.is_available():
        raise ExportError(
            f"cannot run eager fair-esm on cuda: PyTorch {torch.__version__} sees no GPU. "
            "Install a CUDA build and driver, or take device 'cpu'"
        )
    return device


def memory_of(device: str) -> int | None:
    """Bytes that eager fair-esm may take there; None where that is unknown."""
    if device == "cpu":
        return usable_memory()
    free, _ = torch.cuda.mem_get_info()
    return int(free)


def arithmetic_of(device: str) -> str:
    """What answers computed on ``device`` depend on beside the code: instructions, or the card.

    Raises:
        ExportError: PyTorch would round float32 products to TF32 there.
    """
    if device == "cpu":
        return str(torch.backends.cpu.get_cpu_capability())
    if torch.backends.cuda.matmul.allow_tf32:
        raise ExportError(
            "cannot run eager fair-esm on cuda: float32 products are allowed to be TF32, expected "
            "PyTorch's default. Unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
        )
    return f"cuda {torch.version.cuda}, {torch.cuda.get_device_name()}"
