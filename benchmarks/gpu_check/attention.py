"""The op on this device: each kernel, dtype and head dim against float64."""

from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.gpu_check.results import Kernel, Status
from runtime.attention import Attention
from runtime.errors import UnsupportedError
from runtime.ops import varlen_attention
from runtime.ops.standard import standard

# Of a device, the fastest first; what "auto" takes is one of them.
KERNELS: dict[str, tuple[Attention, ...]] = {
    "cuda": ("flash-attn-3", "flash-attn", "flash", "memory-efficient", "standard"),
    "cpu": ("auto", "standard"),
}
# Every ESM-2's: 8M, 35M, 150M, 650M and 3B, 15B.
HEAD_DIMS = (16, 24, 32, 64, 128)
NUM_HEADS = 4
# One token, less than a block, blocks and a rest, beyond 1024; the order is no kernel's favourite.
LENGTHS = (300, 1, 7, 1100, 64, 65)
# flash-attn's own test convention: at most twice the error of standard attention in the dtype.
MAX_RATIO = 2.0


def check_kernel(
    requested: Attention, dtype_name: str, device: str
) -> tuple[Status, str, Kernel | None]:
    """Runs one kernel on a pack for every head dim that it takes.

    Returns:
        A status, the reason unless it passed, and what was measured.
    """
    dtype: torch.dtype = getattr(torch, dtype_name)
    worst_error, worst_ratio, name = 0.0, 0.0, ""
    problems, not_run = [], []
    for head_dim in HEAD_DIMS:
        try:
            choice = varlen_attention.choose(torch.device(device), dtype, head_dim, requested)
        except UnsupportedError as error:
            not_run.append(str(error))
            continue
        name = choice.name
        q, k, v, cu_seqlens = _pack(head_dim, dtype, device)
        scale = head_dim**-0.5
        arguments = cu_seqlens, max(LENGTHS), scale
        with varlen_attention.using(choice):
            found = torch.ops.esm2.varlen_attention(q, k, v, *arguments)
        truth = standard(q.double(), k.double(), v.double(), *arguments)
        error = _worst_protein(found, truth)
        own = _worst_protein(standard(q, k, v, *arguments), truth)
        worst_error = max(worst_error, error)
        worst_ratio = max(worst_ratio, error / own)
        if not error <= MAX_RATIO * own:
            problems.append(
                f"head dim {head_dim}: relative L2 {error:.1e}, expected at most {MAX_RATIO:g} x "
                f"the {own:.1e} of standard attention"
            )
    if len(not_run) == len(HEAD_DIMS):
        return "not run", not_run[0], None
    measured = Kernel(name, len(HEAD_DIMS) - len(not_run), worst_error, worst_ratio)
    return "failed" if problems else "passed", "; ".join(problems), measured


def _pack(head_dim: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(head_dim)
    shape = sum(LENGTHS), NUM_HEADS, head_dim
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).to(device, torch.int32)
    return q, k, v, bounds


def _worst_protein(found: Tensor, truth: Tensor) -> float:
    """The worst relative L2 of a protein: errors of a short one would drown in the pack's."""
    bounds = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    differences = found.double() - truth
    return max(
        float(differences[start:end].norm() / truth[start:end].norm())
        for start, end in pairwise(bounds)
    )
