"""What a report says of the machine that it was measured on."""

import importlib.metadata
import platform
from pathlib import Path

import torch

from runtime.threads import default_threads, usable_cores

PACKAGES = (
    "esm2-engines", "fair-esm", "torch", "numpy", "onnx", "onnxruntime", "flash-attn",
    "flash-attn-3",
)  # fmt: skip


def describe_environment() -> dict[str, str]:
    """Versions, CPU and GPU, for people; what is not installed is left out."""
    versions = {name: version for name in PACKAGES if (version := version_of(name))}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        **versions,
        "python": platform.python_version(),
        "threads": str(default_threads()),
        "cpu": f"{usable_cores()} cores, {cpu_name()}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
    }


def cpu_name() -> str:
    """As the kernel calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    """Of an installed distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
