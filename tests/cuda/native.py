"""The native op as a host in C++ has it: its library alone, without this project's Python.

``python -m tests.cuda.native LIBRARY``; the calls of CUDA of one attention go to stderr, between
two lines.
"""

import ctypes
import sys

import click
import torch

from tests.cuda.forward import BEGIN, END

LENGTHS = (300, 1, 65)


def main() -> None:
    """Prints the shape of what came back."""
    torch.ops.load_library(sys.argv[1])
    q, k, v = (
        torch.zeros(sum(LENGTHS), 3, 64, dtype=torch.float16, device="cuda") for _ in range(3)
    )
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).to("cuda", torch.int32)
    ctypes.CDLL(None).setenv(b"CUDA_STAND_IN_LOG", b"1", 1)
    click.echo(BEGIN, err=True)
    out = torch.ops.esm2.varlen_attention(q, k, v, bounds, max(LENGTHS), 0.125)
    click.echo(END, err=True)
    click.echo(f"{out.dtype} {tuple(out.shape)}")


if __name__ == "__main__":
    main()
