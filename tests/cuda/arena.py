"""What ONNX Runtime's arena on a card holds after packs of many sizes.

``python -m tests.cuda.arena ARTIFACT``, as ``tests.cuda.forward``; the log goes to stderr.
"""

import ctypes
import re
import sys
from pathlib import Path

import click

import runtime
from tests.cuda.forward import pack

ALONE, GROWING, AGAIN, END = "--- largest alone", "--- growing", "--- again", "--- end"
# Each larger than the one before: none finds a block that was left for it.
SIZES = range(5000, 16_385, 876)
ALLOCATED = re.compile(r"CUDA cudaMalloc (\d+)")


def problems(log: str) -> tuple[str, list[str]]:
    """What was allocated, in words, and what is wrong with it.

    A card must hold for all sizes little more than for the largest, and have no memory to ask for
    when sizes come again.
    """
    parts = re.split("|".join((ALONE, GROWING, AGAIN, END)), log)[1:-1]
    alone, growing, again = (sum(map(int, ALLOCATED.findall(part))) for part in parts)
    held = (growing + again) / alone
    found = [f"holds {held:.2f} times what the largest pack takes"] if held > 1.1 else []
    found += [f"asks for {again:,} bytes for sizes that it had"] if again else []
    return f"{alone:,} bytes for the largest pack, {held:.2f} times that for all sizes", found


def main() -> None:
    """Runs the largest pack in one engine; all of them, and once more, in another."""
    ctypes.CDLL(None).setenv(b"CUDA_STAND_IN_LOG", b"1", 1)
    for rounds in ({ALONE: SIZES[-1:]}, {GROWING: SIZES, AGAIN: SIZES}):
        click.echo(next(iter(rounds)), err=True)
        with runtime.load(Path(sys.argv[1]), "onnx-cuda", "cuda", check_files=False) as engine:
            for name, sizes in rounds.items():
                if name == AGAIN:
                    click.echo(name, err=True)
                for num_tokens in sizes:
                    engine.embed(pack(num_tokens), engine.spec.layers[-1], "mean")
    click.echo(END, err=True)


if __name__ == "__main__":
    main()
