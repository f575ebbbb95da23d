"""The kernel of ``esm2::rotary`` for cards, in Triton; importing this module imports triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Numbers of each half of D that one program holds: an H200 was fastest with 512 of 256 to 4,096.
NUMBERS = 512


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See ``runtime.ops.rotary.in_torch``; x is read once and the result written once.

    Args:
        x: ``[T, H, D]``, D even and dense, T and H of any strides.
        cos, sin: ``[T, 1, D]``, dense, of one dtype.

    Returns:
        ``[T, H, D]``, contiguous.
    """
    num_tokens, num_heads, head_dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = num_tokens * num_heads
    columns = triton.next_power_of_2(head_dim // 2)
    block = max(1, NUMBERS // columns)
    if rows:
        _rotate[(triton.cdiv(rows, block),)](
            out, x, cos, sin, rows, num_heads, x.stride(0), x.stride(1),
            head_dim=head_dim, columns=columns, block=block,
        )  # fmt: skip
    return out


# A row is one head of one token; its first and second half are two loads. Nothing is compiled anew
# for another number of rows.
@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _rotate(  # type: ignore[no-untyped-def]
    out, x, cos, sin, rows, num_heads, token_stride, head_stride,
    head_dim: tl.constexpr, columns: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    half: tl.constexpr = head_dim // 2
    # Packs of 2^31 numbers exist.
    row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)[:, None]
    column = tl.arange(0, columns)[None, :]
    inside = (row < rows) & (column < half)
    token = row // num_heads
    source = x + token * token_stride + (row % num_heads) * head_stride + column
    table = token * head_dim + column
    first = tl.load(source, inside)
    second = tl.load(source + half, inside)
    first_cos = tl.load(cos + table, inside)
    first_sin = tl.load(sin + table, inside)
    second_cos = tl.load(cos + table + half, inside)
    second_sin = tl.load(sin + table + half, inside)
    target = out + row * head_dim + column
    tl.store(target, first * first_cos + second * first_sin, inside)
    tl.store(target + half, second * second_cos + first * second_sin, inside)
