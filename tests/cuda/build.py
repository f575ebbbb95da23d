"""Builds libraries that stand in for CUDA's, with every symbol that one library imports."""

import hashlib
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

SOURCES = [Path(__file__).with_name(name) for name in ("stand_in.cpp", "driver.cpp")]
# Names that they write out.
WRITTEN = re.compile(r"^(?:CUresult|int|void\*\*|void|unsigned|const char\*) (\w+)\(", re.M)
OF_CUDA = r"lib(?:cu|nvrtc|nvshmem|nccl)\S*"
SYMBOL = re.compile(r"_*cu[A-Za-z]|nv(?:rtc|shmem|JitLink|tx)|nccl")
SPECIAL = {
    "cudnnGetVersion": "unsigned long cudnnGetVersion(void){return 91000;}",
    "cudnnGetErrorString": 'const char* cudnnGetErrorString(int e){return "stand-in";}',
    "cudaGetDeviceProperties_v2": "int cudaGetDeviceProperties(void*,int);"
    " int cudaGetDeviceProperties_v2(void*p,int d){return cudaGetDeviceProperties(p,d);}",
}


def digest() -> str:
    """Of all that the libraries are made by."""
    made_by = [path.read_bytes() for path in (*SOURCES, Path(__file__))]
    return hashlib.sha256(b"".join(made_by)).hexdigest()[:12]


def build(libraries: Sequence[Path], include: Path, out: Path) -> None:
    """``libcudart.so.13`` and the others that ``libraries`` are linked with, in ``out``.

    Args:
        libraries: of another package, such as ``libonnxruntime_providers_cuda.so``.
        include: CUDA's headers.
        out: an empty folder; the dynamic linker must find it.
    """
    # A library of CUDA, and the version that its symbols are asked for by; most have its name.
    versions: dict[str, str] = {}
    symbols: set[str] = set()
    for library in libraries:
        headers = _output("objdump", "-p", str(library))
        needed = re.findall(rf"NEEDED +({OF_CUDA})", headers)
        asked = re.findall(rf"required from ({OF_CUDA}):\n(?:\s+\S+){{3}} (\S+)", headers)
        versions = dict.fromkeys(needed, "") | versions | dict(asked)
        undefined = _output("nm", "-D", "--undefined-only", str(library)).split()
        symbols |= {name.partition("@")[0] for name in undefined if SYMBOL.match(name)}
    # Kernels that are compiled at run time ask for more of the driver, nobody knows what before.
    symbols |= set(re.findall(r"CUDAAPI (cu\w+)\(", (include / "cuda.h").read_text()))
    written = {name for source in SOURCES for name in WRITTEN.findall(source.read_text())}
    stubs = out / "stubs.c"
    stubs.write_text("\n".join(map(_stub, sorted(symbols - written))))
    objects = [out / f"{source.stem}.o" for source in [*SOURCES, stubs]]
    for source, compiled in zip([*SOURCES, stubs], objects, strict=True):
        flags = ["-O1", "-fPIC", "-w", "-c", "-I", include]
        subprocess.check_call(["gcc", *flags, source, "-o", compiled])
    for name, version in versions.items():
        script = out / f"{name}.map"
        script.write_text(f"{version} {{ global: cu*; __cu*; nv*; nccl*; local: *; }};\n")
        subprocess.check_call([
            "g++", "-shared", "-o", out / name, *objects,
            f"-Wl,-soname,{name}", f"-Wl,--version-script={script}",
        ])  # fmt: skip
        # By this name compilers link with it.
        (out / f"{name.partition('.')[0]}.so").symlink_to(name)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _stub(name: str) -> str:
    """A function that says all went well."""
    if name in SPECIAL:
        return SPECIAL[name]
    if name.startswith("cudnnCreate") or name.endswith("Create"):
        return f"int {name}(void**p){{*p=(void*)0x60;return 0;}}"
    return f"int {name}(void){{return 0;}}"
