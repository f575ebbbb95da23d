"""Builds libraries that stand in for CUDA's, with every symbol that one library imports."""

import re
import subprocess
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).with_name("stand_in.cpp")
# Names that stand_in.cpp writes out.
WRITTEN = re.compile(r"^(?:int|void\*\*|void|unsigned|const char\*) (\w+)\(", re.M)
SPECIAL = {
    "cudnnGetVersion": "unsigned long cudnnGetVersion(void){return 91000;}",
    "cudnnGetErrorString": 'const char* cudnnGetErrorString(int e){return "stand-in";}',
    "cudaGetDeviceProperties_v2": "int cudaGetDeviceProperties(void*,int);"
    " int cudaGetDeviceProperties_v2(void*p,int d){return cudaGetDeviceProperties(p,d);}",
}


def build(library: Path, include: Path, out: Path) -> None:
    """``libcudart.so.13`` and the others that ``library`` is linked with, in ``out``.

    Args:
        library: of another package, such as ``libonnxruntime_providers_cuda.so``.
        include: CUDA's headers.
        out: an empty folder; the dynamic linker must find it.
    """
    needed = re.findall(r"NEEDED.*\[(lib(?:cu|nv)[^\]]*)\]", _output("readelf", "-d", str(library)))
    by_version: dict[str, set[str]] = defaultdict(set)
    for line in _output("nm", "-D", "--undefined-only", str(library)).splitlines():
        symbol, _, version = line.split()[-1].partition("@")
        if re.match(r"_*cu|nv", symbol):
            by_version[version.strip("@")].add(symbol)
    written = set(WRITTEN.findall(SOURCE.read_text()))
    stubs = out / "stubs.c"
    stubs.write_text("\n".join(map(_stub, sorted(set().union(*by_version.values()) - written))))
    flags = ["-O1", "-fPIC", "-w", "-c"]
    subprocess.check_call(["g++", *flags, "-isystem", include, SOURCE, "-o", out / "stand_in.o"])
    subprocess.check_call(["gcc", *flags, stubs, "-o", out / "stubs.o"])
    for name in needed:
        script = out / f"{name}.map"
        version = f"{name} " if name in by_version else ""
        script.write_text(f"{version}{{ global: cu*; __cu*; nv*; }};\n")
        subprocess.check_call([
            "g++", "-shared", "-o", out / name, out / "stand_in.o", out / "stubs.o",
            f"-Wl,-soname,{name}", f"-Wl,--version-script={script}",
        ])  # fmt: skip


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _stub(name: str) -> str:
    """A function that says all went well."""
    if name in SPECIAL:
        return SPECIAL[name]
    if name.startswith("cudnnCreate") or name.endswith("Create"):
        return f"int {name}(void**p){{*p=(void*)0x60;return 0;}}"
    return f"int {name}(void){{return 0;}}"
