"""``model.pt2``: the packed forward compiled by AOTInductor, its constants left out."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from exporter.errors import ExportError
from exporter.formats.aoti.compiler import compiling_in
from exporter.formats.archive import rewrite
from exporter.formats.native import compiler_command, telling_line
from exporter.formats.tracing import SHORT, dynamic_shapes, exporting, tracing_pack
from exporter.model.packed_forward import PackedESM2
from runtime.instructions import PORTABLE, X86_64_V3
from runtime.manifest_schema import EngineEntry
from runtime.staging import temporary_folder

FILE_NAME = "model.pt2"
LOWERING = "esm2::varlen_attention, everything around it compiled"
# Those that this PyTorch does not know are left out: 2.11 writes no line tables in any case.
OPTIONS: dict[str, Any] = {
    "aot_inductor.package_constants_in_so": False,
    "aot_inductor.enable_line_tables": False,
    # What several read is computed once: cosine and sine of the angles would be in every layer.
    "realize_opcount_threshold": 0,
    # Headers and a probe of the processor pay for themselves in many builds, not in one.
    "aot_inductor.precompile_headers": False,
    "cpp_cache_precompile_headers": False,
}

# Of files, and of the symbols named after them; else digests of sources that name a temporary
# folder. Not on a card, where it would be in the names of kernels, too.
NAMED = {"aot_inductor.model_name_for_generated_files": "engine"}

# Instruction set -> the width of its vectors in bits. Linears and attention, nearly all of the
# time, take what the processor has in any case; the rest asks for what most processors have.
VECTOR_BITS = {X86_64_V3: 256}


def export(packed: PackedESM2, folder: Path) -> EngineEntry:
    """Compiles ``packed`` into ``folder``.

    Args:
        packed: on the CPU, in the dtype to export.
        folder: where ``model.pt2`` goes.

    Raises:
        CompilerError: no C++ compiler.
        ExportError: the compiler failed, or this PyTorch cannot compile for other processors.
    """
    compiler = compiler_command()
    _check_version()
    instructions = PORTABLE.get(platform.machine())
    compile_package(packed, folder / FILE_NAME, _options(instructions), compiler)
    return EngineEntry(
        file=FILE_NAME,
        lowering=LOWERING,
        built_with={"torch": str(torch.__version__)},
        instructions=instructions or instructions_of_this_machine(),
    )


def instructions_of_this_machine() -> str:
    """Where the compiler is told of no instruction set, it takes all that the processor has."""
    return f"those of {platform.processor() or platform.machine()}"


def compile_package(
    packed: PackedESM2,
    path: Path,
    options: dict[str, Any],
    compiler: list[str],
    lengths: Sequence[int] = SHORT,
) -> None:
    """Compiles ``packed`` into ``path``, for the device that it lies on.

    Args:
        packed: in the dtype to export.
        path: of the package.
        options: Inductor's, beside ``OPTIONS``.
        compiler: of C++, as a command.
        lengths: of a pack by whose size the compiler chooses among kernels.

    Raises:
        ExportError: the compiler failed; the line in which it says why.
    """
    device = packed.embed_tokens.weight.device
    input_ids, cu_seqlens, max_seqlen = tracing_pack(lengths)
    named = NAMED if device.type == "cpu" else {}
    # The host's max_seqlen stays there: it is a size.
    pack = input_ids.to(device), cu_seqlens.to(device), max_seqlen
    with temporary_folder("aoti") as workspace, compiling_in(workspace, compiler):
        with exporting():
            program = torch.export.export(
                packed, pack, dynamic_shapes=dynamic_shapes(), strict=False
            )
        try:
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(path),
                inductor_configs={**_known(OPTIONS | named), **options},
            )
        except Exception as error:  # the compiler's output comes in a dozen classes
            said = telling_line(str(error) or type(error).__name__)
            raise ExportError(f"AOTInductor could not compile the model: {said}") from error
    _drop_sources(path)


def _known(options: dict[str, Any]) -> dict[str, Any]:
    from torch._inductor import config

    known = config.get_config_copy()
    return {name: value for name, value in options.items() if name in known}


def _check_version() -> None:
    from torch._inductor import config

    if not hasattr(config.cpp, "march"):
        raise ExportError(
            f"PyTorch {torch.__version__} compiles for this very processor alone: "
            "build engine 'aoti' with torch 2.13 (it loads in 2.11), or leave it out of --target"
        )


def _options(instructions: str | None) -> dict[str, Any]:
    if instructions is None:
        return {}
    return {
        "cpp.march": instructions,
        "cpp.simdlen": VECTOR_BITS[instructions],
        "cpp.vec_isa_ok": True,
    }


def _drop_sources(path: Path) -> None:
    """Empties the generated C++ in the package: PyTorch 2.11 reads its name, nothing its text."""
    rewrite(path, lambda name, data: b"" if name.endswith(".cpp") else data)
