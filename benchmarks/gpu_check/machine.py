"""The card, its driver, and the versions of what runs on it."""

import platform
import shutil
import subprocess

import torch

from benchmarks.gpu_check.results import Machine
from exporter.environment import cpu_name, version_of
from runtime.threads import usable_cores

PACKAGES = (
    "esm2-engines", "fair-esm", "torch", "triton", "flash-attn", "flash-attn-3", "onnx",
    "onnxruntime", "onnxruntime-gpu", "transformers", "numpy",
)  # fmt: skip


def describe(device: str) -> Machine:
    """What a report says of this machine; packages that are not installed are left out."""
    versions = {name: version for name in PACKAGES if (version := version_of(name))}
    versions["python"] = platform.python_version()
    cpu = f"{usable_cores()} cores, {cpu_name()}"
    if device == "cpu":
        return Machine(
            device, "no card: a rehearsal on the CPU", "none", 0.0, "none", cpu, versions
        )
    versions["cuda of torch"] = str(torch.version.cuda)
    properties = torch.cuda.get_device_properties(0)
    return Machine(
        device=device,
        name=properties.name,
        compute_capability=f"{properties.major}.{properties.minor}",
        memory_gb=round(properties.total_memory / 1e9, 1),
        driver=_driver(),
        cpu=cpu,
        versions=versions,
    )


def _driver() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "unknown: there is no nvidia-smi"
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return "unknown: nvidia-smi does not answer"
    lines = found.stdout.split()
    return lines[0] if found.returncode == 0 and lines else "unknown: nvidia-smi failed"
