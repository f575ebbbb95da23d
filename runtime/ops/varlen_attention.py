"""``esm2::varlen_attention``: the one attention op of every traced graph.

Importing this module registers the op with PyTorch; ``use_native`` gives it its fast CPU kernel.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor

from runtime import instructions
from runtime.engine import Attention
from runtime.errors import UnsupportedError
from runtime.manifest import EngineEntry
from runtime.ops import cpu, cuda
from runtime.ops.standard import standard

logger = logging.getLogger(__name__)

NAME = "esm2::varlen_attention"
SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, SymInt max_seqlen, float softmax_scale)"
    " -> Tensor"
)

# Read by runtime/ops/native/torch_op.cpp: this module has registered the op already.
IN_PYTHON_VARIABLE = "ESM2_OPS_IN_PYTHON"
NATIVE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# The instruction set of the native kernel, once it is loaded; the first in a process stays.
_native: str | None = None

# The schema carries no choice of kernel, so an engine sets it around its own forward. A ContextVar
# is private to a thread: two engines that run side by side do not change each other.
_requested: ContextVar[Attention] = ContextVar("esm2_attention", default="auto")


@contextmanager
def attention(requested: Attention) -> Iterator[None]:
    """Chooses the kernel for every call of the op inside the block.

    Args:
        requested: ``"auto"``, the fastest kernel of the device, or ``"standard"``, the arithmetic
            of the reference (matmul, float32 softmax, cast, matmul).
    """
    token = _requested.set(requested)
    try:
        yield
    finally:
        _requested.reset(token)


def use_native(library: Path) -> None:
    """Takes the op's CPU kernel from an artifact's ``libesm2_ops.so``; the first stays.

    Raises:
        UnsupportedError: the library cannot be loaded here, or is not ours.
    """
    global _native
    if _native is not None:
        return
    os.environ[IN_PYTHON_VARIABLE] = "1"
    try:
        name = instructions.of_library(library)
        torch.ops.esm2.varlen_attention_native.default  # noqa: B018  registered, or AttributeError
    except (OSError, AttributeError) as error:
        raise UnsupportedError(
            f"cannot load {library}: {str(error).removeprefix(f'{library.resolve()}: ')}"
        ) from None
    finally:
        del os.environ[IN_PYTHON_VARIABLE]
    _native = name


def use_native_of(folder: Path, entry: EngineEntry) -> None:
    """``use_native`` of an artifact's engine; where it cannot, warns of what is lost."""
    if entry.op_library is None:
        return
    try:
        use_native(folder / entry.op_library)
    except UnsupportedError as error:
        logger.warning("%s. Attention runs in PyTorch's own ops, which takes longer", error)


def kernel_name(
    device: torch.device, dtype: torch.dtype, head_dim: int, requested: Attention
) -> str:
    """The kernel that the op will run, for people."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return cuda.choose_kernel(capability, dtype, head_dim, requested).name
    if requested == "standard":
        return "standard"
    is_native = _native is not None and dtype in NATIVE_DTYPES
    return f"native ({_native})" if is_native else "torch sdpa per protein"


def _on_cpu(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float
) -> Tensor:
    if _requested.get() == "standard":
        return standard(q, k, v, cu_seqlens, softmax_scale)
    if _native is not None and q.dtype in NATIVE_DTYPES:
        native: Tensor = torch.ops.esm2.varlen_attention_native(
            q, k, v, cu_seqlens, max_seqlen, softmax_scale
        )
        return native
    return cpu.sdpa(q, k, v, cu_seqlens, softmax_scale)


def _on_cuda(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float
) -> Tensor:
    capability = torch.cuda.get_device_capability(q.device)
    choice = cuda.choose_kernel(capability, q.dtype, q.shape[-1], _requested.get())
    return choice.kernel(q, k, v, cu_seqlens, max_seqlen, softmax_scale)


def _fake(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float
) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


torch.library.define(NAME, SCHEMA, tags=torch.Tag.pt2_compliant_tag)
torch.library.impl(NAME, "CPU", _on_cpu)
torch.library.impl(NAME, "CUDA", _on_cuda)
torch.library.register_fake(NAME, _fake)
