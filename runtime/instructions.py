"""Which instruction sets compiled engines need, and whether this processor has them."""

import ctypes
import platform
from pathlib import Path

from runtime.errors import EngineError

X86_64_V3 = "x86-64-v3"

# What an engine is compiled for by default: machine -> instruction set.
PORTABLE = {"x86_64": X86_64_V3, "AMD64": X86_64_V3}

# Flags as Linux names them. Source: the x86-64 psABI, "Micro-Architecture Levels"; abm is lzcnt.
_FLAGS = {
    X86_64_V3: {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"},
}

_VNNI = {"avx512_vnni", "avx_vnni"}


def problem_with(instructions: str | None) -> str | None:
    """Why this processor cannot run code for ``instructions``, in a sentence, or None."""
    if instructions is None:
        return None
    needed = _FLAGS.get(instructions)
    if needed is None:
        here = platform.processor() or platform.machine()
        return None if here in instructions else f"built for {instructions}, this is {here}"
    if platform.machine() not in PORTABLE:
        return f"built for {instructions}, this processor is {platform.machine()}"
    here_flags = processor_flags()
    if here_flags is None:
        return None  # a system that does not say; Linux does
    missing = sorted(needed - here_flags)
    return (
        f"built for {instructions}, this processor lacks {', '.join(missing)}" if missing else None
    )


def has_int8_dot_product() -> bool:
    """Whether this processor sums products of uint8 and int8 in 32 bits: by VNNI, or on ARM.

    x86 without VNNI adds two of them in 16 bits and cuts the sum off.
    """
    if platform.machine() not in PORTABLE:
        return True
    return bool((processor_flags() or set()) & _VNNI)


def of_library(library: Path) -> str:
    """The instruction set that a native op library has chosen here; loads it.

    Raises:
        OSError: it cannot be loaded here.
        EngineError: it is another library.
    """
    try:
        function = ctypes.CDLL(str(library.resolve())).esm2_instruction_set
    except AttributeError:
        raise another_library(library, "has no esm2_instruction_set") from None
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()


def another_library(library: Path, reason: str) -> EngineError:
    """That a library is not what its name says."""
    return EngineError(
        f"{library} is another library, not this project's attention op: it {reason}. Export again "
        "or copy the artifact anew"
    )


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str] | None:
    """Of the first processor, or None where the system does not say."""
    if not cpuinfo.is_file():
        return None
    for line in cpuinfo.read_text().splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return set(flags.split())
    return None
