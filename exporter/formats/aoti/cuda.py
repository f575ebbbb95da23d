"""``model.cuda.pt2``: the packed forward compiled by AOTInductor for this machine's GPU.

Its kernels fuse what PyTorch runs one by one around linears and attention: rotary, LayerNorm, GELU
and residuals, which are bound by the card's memory.
"""

from pathlib import Path

import torch

from exporter.errors import ExportError
from exporter.formats.aoti.export import LOWERING, compile_package, instructions_of_this_machine
from exporter.formats.aoti.toolkit import missing_for_cuda
from exporter.formats.native import compiler_command
from exporter.model.packed_forward import PackedESM2
from exporter.model.precision import copy_on
from runtime.engines.torch.aoti_cuda import capability_of_this_gpu
from runtime.manifest_schema import EngineEntry

FILE_NAME = "model.cuda.pt2"
# 16,384 tokens: block sizes that suit a pack of three short proteins leave a card idle.
TYPICAL_PACK = (1024, 512, 512, *[256] * 56)
# Kernels are tuned in a run on that pack. Else they are tuned on made-up tensors, whose protein
# indices lie outside of what pooling in the graph adds up (PyTorch 2.11, on an H100).
OPTIONS = {"triton.autotune_at_compile_time": False}


def check(longest: int) -> None:
    """See ``Format.check``: there is no GPU here, or nothing to compile for it with."""
    if not torch.cuda.is_available():
        raise ExportError(
            "target aoti-cuda compiles for the GPU of this machine, and PyTorch "
            f"{torch.__version__} sees none. Build it where it will run, or leave aoti-cuda out of "
            "--target"
        )
    if missing := missing_for_cuda():
        raise ExportError(f"target aoti-cuda: {missing}. Or leave aoti-cuda out of --target")


def export(packed: PackedESM2, folder: Path) -> EngineEntry:
    """Compiles ``packed`` into ``folder``.

    Args:
        packed: on the CPU, in the dtype to export; a copy goes to the card.
        folder: where ``model.cuda.pt2`` goes.

    Raises:
        CompilerError: no C++ compiler.
        ExportError: the compiler failed.
    """
    compiler = compiler_command()
    compile_package(copy_on(packed, "cuda"), folder / FILE_NAME, OPTIONS, compiler, TYPICAL_PACK)
    return EngineEntry(
        file=FILE_NAME,
        lowering=LOWERING,
        built_with={
            "torch": str(torch.__version__),
            "CUDA": str(torch.version.cuda),
            "GPU": torch.cuda.get_device_name(),
        },
        instructions=instructions_of_this_machine(),
        compute_capability=capability_of_this_gpu(),
    )
