"""Whether this machine can compile for CUDA, asked of its compiler before minutes are spent."""

import importlib.util
import subprocess

from exporter.formats.native import CompilerError, compiler_command, telling_line
from runtime.staging import temporary_folder

# Headers that AOTInductor's code includes, and the one library of NVIDIA that it is linked with.
PROBE = """
#include <cuda.h>
#include <cuda_runtime.h>
extern "C" int probe() { return cuInit(0); }
"""
REMEDY = (
    "Install the CUDA toolkit of PyTorch's version and set CUDA_HOME to its folder (in "
    "LIBRARY_PATH its lib64/stubs, where there is no driver)"
)


def missing_for_cuda() -> str:
    """One sentence with its remedy, or empty where engines for CUDA can be compiled."""
    if importlib.util.find_spec("triton") is None:
        return "triton, which compiles for GPUs, is not installed"
    # The very folders that Inductor will hand to the compiler.
    from torch._inductor.cpp_builder import get_cpp_torch_device_options

    try:
        compiler = compiler_command()
        options = get_cpp_torch_device_options("cuda", aot_mode=True)
    except CompilerError as error:
        return str(error)
    except OSError:  # PyTorch's own sentence names CUDA_HOME alone
        return f"There is no CUDA toolkit: PyTorch finds no nvcc and no CUDA_HOME. {REMEDY}"
    includes = [f"-I{folder}" for folder in options[1]]
    libraries = [f"-L{folder}" for folder in options[4]]
    with temporary_folder("probe") as folder:
        (folder / "probe.cpp").write_text(PROBE)
        command = [*compiler, "-shared", "-fPIC", *includes, "probe.cpp", "-o", "probe.so"]
        command += [*libraries, "-lcuda"]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ran.returncode == 0:
        return ""
    return f"{compiler[0]} cannot compile for CUDA: {telling_line(ran.stderr)}. {REMEDY}"
