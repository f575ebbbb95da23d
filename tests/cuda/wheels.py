"""Real packages for CUDA, and a stand-in for the libraries that they are linked with."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tests.cuda import build as stand_in

HEADERS = (
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
)
PYPI = "https://pypi.org/simple"


def onnxruntime_gpu(version: str, cache: Path) -> Path:
    """A folder with onnxruntime-gpu in ``packages``, and the stand-in beside it, each made once."""
    provider = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
    return _unpacked(f"onnxruntime-gpu=={version}", [provider], cache)


def torch_cuda(version: str, cache: Path) -> Path:
    """The same with PyTorch's build for CUDA, without the libraries of NVIDIA that it asks for."""
    names = ("c10_cuda", "caffe2_nvrtc", "torch_cpu", "torch_cuda", "torch_cuda_linalg",
             "torch_nvshmem", "torch_python")  # fmt: skip
    return _unpacked(f"torch=={version}", [f"torch/lib/lib{name}.so" for name in names], cache)


def environment(place: Path) -> dict[str, str]:
    """Variables with which a process takes the packages, the stand-in and its headers."""
    return {
        "CUDA_HOME": str(cuda_home(place)),
        "LIBRARY_PATH": str(_stand_in(place)),
        "LD_LIBRARY_PATH": str(_stand_in(place)),
        "PYTHONPATH": f"{place / 'packages'}:{Path.cwd()}",
    }


def cuda_home(place: Path) -> Path:
    """The folder of CUDA's headers."""
    (home,) = place.glob("packages/nvidia/cu*")
    return home.resolve()


def _stand_in(place: Path) -> Path:
    return place / f"lib-{stand_in.digest()}"


def _unpacked(requirement: str, linked: Sequence[str], cache: Path) -> Path:
    place = cache.resolve() / requirement.replace("==", "-")
    if not place.exists():
        _unpack(requirement, place)
    if not _stand_in(place).exists():
        libraries = [place / "packages" / name for name in linked]
        with tempfile.TemporaryDirectory(dir=place) as temporary:
            aside = Path(temporary) / "lib"
            aside.mkdir()
            stand_in.build(libraries, cuda_home(place) / "include", aside)
            aside.rename(_stand_in(place))
    return place


def _unpack(requirement: str, place: Path) -> None:
    cache = place.parent
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        aside = Path(temporary) / "made"
        wheels = aside / "wheels"
        # From PyPI, whose PyTorch is for CUDA, whatever this machine is told to take.
        subprocess.check_call([
            sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "download",
            "--quiet", "--no-deps", "--index-url", PYPI, "--dest", wheels, requirement, *HEADERS,
        ])  # fmt: skip
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(aside / "packages")
            wheel.unlink()
        # The real runtime would be found before its stand-in.
        shutil.rmtree(cuda_home(aside) / "lib")
        aside.rename(place)
