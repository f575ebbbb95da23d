"""What comes to the host where several vectors of a protein, and one output of many, are wanted.

``python -m tests.cuda.fetched ARTIFACT ENGINE``; prints the bytes of it; the log goes to stderr.
"""

import ctypes
import sys
from pathlib import Path

import click

import runtime
from tests.cuda.forward import BEGIN, END, pack


def main() -> None:
    """Prints the sum."""
    with runtime.load(Path(sys.argv[1]), sys.argv[2], "cuda", check_files=False) as engine:
        batch, last = pack(4096), engine.spec.layers[-1]
        engine.embed(batch, last, "cls")
        ctypes.CDLL(None).setenv(b"CUDA_STAND_IN_LOG", b"1", 1)
        click.echo(BEGIN, err=True)
        found = engine.embed_several(batch, [(last, "cls"), (last, "mean-with-eos")])
        found.append(engine.run(batch, ["logits"]).tensors["logits"])
        click.echo(END, err=True)
    click.echo(sum(array.nbytes for array in found))


if __name__ == "__main__":
    main()
