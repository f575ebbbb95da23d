"""Compiles the native attention op, as a library for PyTorch and as one for ONNX Runtime.

One source (``runtime/ops/native/``) and one kernel for each instruction set; the processor's is
chosen when the library is loaded. Compiled once for a machine, compiler and PyTorch, and cached.
"""

import atexit
import contextlib
import functools
import hashlib
import importlib.resources
import os
import platform
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from exporter.errors import ExportError
from exporter.formats.format import ONNXRUNTIME_LIBRARY, TORCH_LIBRARY
from runtime.staging import staging, temporary_folder
from runtime.threads import usable_cores
from runtime.user_cache import default_folder

COMPILER_VARIABLE = "CXX"

# The first PyTorch whose stable ABI has all that the op needs.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
# No -ffast-math: NaN must stay NaN, and sums must stay in the order that was measured.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno",
         "-fno-trapping-math", "-ffp-contract=fast", "-DNDEBUG")  # fmt: skip


@dataclass(frozen=True)
class InstructionSet:
    """How ``kernel.cpp`` is compiled for one; ``rows`` x 2 vectors must fit its registers."""

    name: str
    width: int
    rows: int
    flags: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """What the compiler is told with ``FLAGS``."""
        of_kernel = {"ISA": self.name, "WIDTH": self.width, "ROWS": self.rows}
        return [*self.flags, *(f"-DESM2_{name}={value}" for name, value in of_kernel.items())]


BASELINE = InstructionSet("baseline", 4, 4)
X86_64 = (
    BASELINE,
    InstructionSet("avx2", 8, 6, ("-mavx2", "-mfma")),
    InstructionSet(
        "avx512", 16, 12, ("-mavx512f", "-mavx512dq", "-mfma", "-mprefer-vector-width=512")
    ),
)


def instruction_sets() -> tuple[InstructionSet, ...]:
    """Those of this kind of machine; processors may lack the wider ones."""
    return X86_64 if platform.machine() in ("x86_64", "AMD64") else (BASELINE,)


class CompilerError(ExportError):
    """There is no compiler that can build the native op; the message says what is missing."""


def compile_libraries() -> Path:
    """A folder with both libraries, from the cache or compiled now (about 15 s on two cores).

    Raises:
        CompilerError: no C++ compiler, or it fails.
    """
    compiler = compiler_command()
    source = importlib.resources.files("runtime.ops") / "native"
    with importlib.resources.as_file(source) as folder:
        name = f"native-{_digest(compiler, folder)}"
        for cache in (default_folder, _folder_of_this_process):
            destination = cache() / name
            if all((destination / name).is_file() for name in (TORCH_LIBRARY, ONNXRUNTIME_LIBRARY)):
                break
            with contextlib.ExitStack() as stack:
                try:
                    destination.parent.mkdir(parents=True, exist_ok=True)
                    built = stack.enter_context(staging(destination))
                    built.mkdir()
                except OSError:  # a cache that cannot be written
                    continue
                _compile(compiler, folder, built)
                with contextlib.suppress(OSError):  # another process was faster
                    built.rename(destination)
                break
    return destination


@functools.cache
def _folder_of_this_process() -> Path:
    """Goes with it: without a cache the op is compiled again by the next."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(temporary_folder("native"))


def compiler_command() -> list[str]:
    """The C++ compiler of this machine, as ``$CXX`` or ``c++``.

    Raises:
        CompilerError: there is none.
    """
    command = shlex.split(os.environ.get(COMPILER_VARIABLE, "c++"))
    if not command or shutil.which(command[0]) is None:
        raise CompilerError(
            f"there is no C++ compiler {' '.join(command) or '(empty CXX)'!r} here: "
            f"install g++ or clang++, or name one in {COMPILER_VARIABLE}"
        )
    return command


def compiler_version(compiler: list[str]) -> str:
    """What a compiler says of itself.

    Raises:
        CompilerError: it says nothing.
    """
    return _run([*compiler, "--version"], Path.cwd())


def _digest(compiler: list[str], source: Path) -> str:
    version = compiler_version(compiler)
    digest = hashlib.sha256(
        repr((compiler, version, platform.machine(), FLAGS, X86_64, torch.__version__)).encode()
    )
    for path in sorted(source.iterdir()):
        digest.update(f"\n{path.name}\n".encode() + path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:20]


def _compile(compiler: list[str], source: Path, built: Path) -> None:
    """Compiles into ``built``, where only the libraries are left."""
    torch_folder = Path(torch.__file__).parent
    objects = built / "objects"
    objects.mkdir()
    # Relative paths: messages of the op name its source, and no folder of this machine.
    prefix = f"-ffile-prefix-map={torch_folder}=torch"
    command = [*compiler, *FLAGS, prefix]
    steps = [
        (f"{kernel}.{s.name}", [f"{kernel}.cpp", *s.arguments])
        for s in sorted(instruction_sets(), key=lambda s: -s.width)  # those that take longest first
        for kernel in ("kernel", "contacts_kernel")
    ]
    hosts = {
        TORCH_LIBRARY: ["torch_op.cpp", TORCH_TARGET, f"-isystem{torch_folder / 'include'}"],
        ONNXRUNTIME_LIBRARY: ["onnxruntime_op.cpp"],
    }
    shared = ("varlen_attention.cpp", "contacts.cpp", "instruction_sets.cpp")
    steps += [*((name, [name]) for name in shared), *hosts.items()]
    # One core is left to whoever waits: engines are exported meanwhile.
    with ThreadPoolExecutor(max(1, usable_cores() - 1)) as pool:
        jobs = [
            pool.submit(
                _run, [*command, "-c", *arguments, "-o", str(objects / f"{name}.o")], source
            )
            for name, arguments in steps
        ]
        for job in jobs:
            job.result()
    kernels = [str(objects / f"{name}.o") for name, _ in steps if name not in hosts]
    # libtorch is found by its name in whatever process loads this; it brings libstdc++, which must
    # be the only one, or exceptions could not cross. ONNX Runtime's op catches its own.
    link = {
        TORCH_LIBRARY: [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", loaded_libstdcxx()],
        ONNXRUNTIME_LIBRARY: ["-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL"],
    }
    for name, libraries in link.items():
        own = str(objects / f"{name}.o")
        _run(
            [*compiler, "-shared", "-s", own, *kernels, *libraries, "-o", str(built / name)], source
        )
    shutil.rmtree(objects)


def loaded_libstdcxx() -> str:
    """The path of the one that this process runs with; a flag without effect where it has none.

    Linked by it, code shares PyTorch's, also where the compiler would take a static one.
    """
    try:
        mapped = Path("/proc/self/maps").read_text().split()
    except OSError:
        mapped = []
    return next((word for word in mapped if Path(word).name.startswith("libstdc++.so")), "-lm")


def telling_line(output: str) -> str:
    """The first line in which a compiler or linker says what is wrong, without folders."""
    lines = output.strip().splitlines()
    telling = [line for line in lines if re.search(r"error|cannot find", line, re.IGNORECASE)]
    # PyTorch's own first line says that there was an error, and not which.
    says_more = [line for line in telling if ": " in line] or telling or lines or ["no message"]
    return re.sub(r"(?<![\w.])/(?:[^\s/:]+/)+", "", says_more[0].strip())


def _run(command: list[str], folder: Path) -> str:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        said = telling_line(result.stderr or f"exit status {result.returncode}")
        raise CompilerError(f"{command[0]} could not compile the native op: {said}")
    return result.stdout
