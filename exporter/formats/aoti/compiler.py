"""How Inductor runs: its files, its C++ compiler, and a fault of older PyTorch made good."""

import os
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from exporter.formats.native import loaded_libstdcxx

# Some compilers link libstdc++ statically, by a flag or because they find no other one. Code then
# holds a second one, which fails in its first regular expression on the locale of PyTorch's, as
# AOTInductor's does when it is loaded. So PyTorch's own is linked, by its path, before any other.
WRAPPER = """#!/bin/sh
for argument in "$@"; do
    case $argument in -c|-E|-S|--version) exec {command} "$@" ;; esac
done
exec {command} "$@" {library}
"""

# The first PyTorch that tells the two passes over a graph apart (see ``_two_passes_apart``).
TELLS_PASSES_APART = (2, 13)


@contextmanager
def compiling_in(workspace: Path, compiler: list[str]) -> Iterator[None]:
    """Inductor's files go to ``workspace``, and no path of this machine into the engine."""
    from torch._inductor import config

    # Inductor takes one word for a compiler, and tells GCC from Clang by it.
    wrapper = workspace / Path(compiler[0]).name
    prefixes = {workspace: "aoti", Path(torch.__file__).parent: "torch"}
    maps = [f"-ffile-prefix-map={path}={name}" for path, name in prefixes.items()]
    real = shutil.which(compiler[0])
    command = shlex.join([str(real), *compiler[1:], *maps])
    wrapper.write_text(WRAPPER.format(command=command, library=shlex.quote(loaded_libstdcxx())))
    wrapper.chmod(0o755)
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    mended = nullcontext() if version >= TELLS_PASSES_APART else _two_passes_apart()
    kept = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    threads = torch.get_num_threads()
    # Fewer than the cores, as by OMP_NUM_THREADS, would become part of the engine.
    torch.set_num_threads(os.cpu_count() or 1)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(workspace / "cache")
    try:
        with mended, config.patch({"cpp.cxx": (None, str(wrapper))}), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        if kept is None:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]
        else:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = kept


def _two_passes_apart() -> AbstractContextManager[Any]:
    """Inside, no array of sizes that the first pass over a graph declared is used by the second.

    PyTorch 2.11 keeps names of arrays by the id of a bound method, which another one may get: then
    the C++ of a large model names arrays that it does not declare, now and then.
    """
    from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu

    def declared_anew(
        self: Any, int_array: str, writeline: Callable[..., None], known_statically: bool = False,
        graph: object = None,
    ) -> str:  # fmt: skip
        name: str = self._codegen_int_array_var_impl(int_array, writeline, known_statically)
        return name

    return mock.patch.object(CppWrapperCpu, "codegen_int_array_var", declared_anew)
