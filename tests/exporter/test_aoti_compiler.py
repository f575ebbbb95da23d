"""How AOTInductor's code is compiled: what it links, and what older PyTorch forgets to declare."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from exporter.errors import ExportError
from exporter.formats.aoti import cuda
from exporter.formats.aoti.compiler import compiling_in
from exporter.formats.aoti.toolkit import missing_for_cuda
from exporter.formats.native import telling_line

SOURCE = "#include <regex>\nbool f(const char* x) { return std::regex_match(x, std::regex(x)); }\n"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_pytorchs_own_libstdcxx_is_linked_also_where_the_compiler_takes_a_static_one(
    tmp_path: Path,
) -> None:
    (tmp_path / "x.cpp").write_text(SOURCE)
    flags = ["-shared", "-fPIC", "x.cpp", "-o"]

    def linked(command: list[object], out: str) -> bool:
        subprocess.run([*map(str, command), *flags, out], cwd=tmp_path, check=True, text=True)
        return b"libstdc++.so" in (tmp_path / out).read_bytes()

    static = ["g++", "-static-libstdc++"]
    assert not linked([*static], "alone.so")
    workspace = tmp_path / "aoti"
    workspace.mkdir()
    with compiling_in(workspace, static):
        assert linked([workspace / "g++"], "wrapped.so")
        compiled = subprocess.run(
            [workspace / "g++", "-c", "-fPIC", "x.cpp", "-o", "x.o"],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
    assert (compiled.returncode, compiled.stderr) == (0, "")


def test_the_second_pass_names_no_array_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu

    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    lines: list[str] = []
    wrapper = CppWrapperCpu.__new__(CppWrapperCpu)
    wrapper.int_array_id = iter(range(9))
    wrapper.declared_int_array_vars = set()
    wrapper.codegen_int_array_var_cache = {}
    before = CppWrapperCpu.codegen_int_array_var
    with compiling_in(tmp_path, ["g++"]):
        names = [wrapper.codegen_int_array_var("{4L}", lines.append, True) for _ in range(2)]
    assert len(set(names)) == len(lines) == 2
    assert all(name in line for name, line in zip(names, lines, strict=True))
    assert CppWrapperCpu.codegen_int_array_var is before


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            "C++ compile error\n\nCommand:\ng++ x.cpp\n\nOutput:\n/tmp/a/cnd.wrapper.cpp:9708:89: "
            "error: 'int_array_56' was not declared in this scope\n 9708 | auto",
            "cnd.wrapper.cpp:9708:89: error: 'int_array_56' was not declared in this scope",
        ),
        (
            "C++ compile error\n\nOutput:\n/usr/bin/ld: cannot find -lcuda: No such file\n"
            "collect2: error: ld returned 1 exit status\n",
            "ld: cannot find -lcuda: No such file",
        ),
        ("CUDA error: an illegal memory access", "CUDA error: an illegal memory access"),
        ("", "no message"),
    ],
)  # fmt: skip
def test_the_message_says_what_the_compiler_said(output: str, said: str) -> None:
    assert telling_line(output) == said


HEADER = 'extern "C" int cuInit(unsigned);\n'


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("has_header", "has_library", "said"),
    [
        (False, False, "cuda.h: No such file or directory. Install the CUDA toolkit of"),
        (False, True, "cuda.h: No such file or directory. Install the CUDA toolkit of"),
        (True, False, "cannot find -lcuda"),
        (True, True, ""),
    ],
)
def test_what_is_missing_to_compile_for_cuda_is_asked_of_the_compiler(
    has_header: bool, has_library: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    home, include, lib = (tmp_path / name for name in ("home", "include", "lib"))
    for folder in (home, include, lib):
        folder.mkdir()
    (tmp_path / "x.cpp").write_text(HEADER.replace(";", " { return 0; }"))
    if has_header:
        (include / "cuda.h").write_text(HEADER)
        (include / "cuda_runtime.h").touch()
    if has_library:
        built = ["-shared", "-fPIC", str(tmp_path / "x.cpp"), "-o", str(lib / "libcuda.so")]
        subprocess.run(["c++", *built], check=True)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("CPATH", str(include))
    monkeypatch.setenv("LIBRARY_PATH", str(lib))
    # What PyTorch has found by CUDA_HOME or nvcc.
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(home))
    found = missing_for_cuda()
    assert said in found if said else found == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if said:
        with pytest.raises(ExportError, match=r"aoti-cuda: .*\. Or leave aoti-cuda out of"):
            cuda.check(100)
    else:
        cuda.check(100)


def test_where_there_is_no_toolkit_it_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    assert missing_for_cuda().startswith("There is no CUDA toolkit: ")
