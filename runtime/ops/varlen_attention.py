"""``esm2::varlen_attention``: the one attention op of every traced graph.

Importing this module registers the op with PyTorch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from runtime.engine import Attention
from runtime.ops import cpu, cuda
from runtime.ops.standard import standard

NAME = "esm2::varlen_attention"
SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, SymInt max_seqlen, float softmax_scale)"
    " -> Tensor"
)

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


def kernel_name(
    device: torch.device, dtype: torch.dtype, head_dim: int, requested: Attention
) -> str:
    """The kernel that the op will run, for people."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return cuda.choose_kernel(capability, dtype, head_dim, requested).name
    return "standard" if requested == "standard" else "torch sdpa per protein"


def _on_cpu(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float
) -> Tensor:
    kernel = standard if _requested.get() == "standard" else cpu.sdpa
    return kernel(q, k, v, cu_seqlens, softmax_scale)


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
