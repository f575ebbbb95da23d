"""Which cards an engine for ``cuda:1`` uses, of two; and what it says where there is one.

``python -m tests.cuda.cards ARTIFACT ENGINE``, with the stand-in's libraries.
"""

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

import runtime
from runtime.errors import Esm2Error
from tests.cuda.forward import pack

DEVICE = "cuda:1"
# What takes memory or time of a card, and the card that was its thread's.
USE = re.compile(r"CUDA (launch|cublas\w*(?:Gemm|gemm|Matmul)\b|cudaM(?!allocHost)\w+).* @(\d+)$")


def problems(log: str) -> list[str]:
    """What a run on ``DEVICE`` asked of another card; or that it asked nothing of this one."""
    used = [(found[1], found[2]) for line in log.splitlines() if (found := USE.match(line))]
    found = [f"{what} on cuda:{card}" for what, card in used if f"cuda:{card}" != DEVICE]
    launches = sum(what == "launch" for what, _ in used)
    return [*dict.fromkeys(found), *([] if launches else [f"no launch on {DEVICE}"])]


def main() -> None:
    """Runs two packs in threads of their own, as commands do; prints why it cannot."""
    folder, name = Path(sys.argv[1]), sys.argv[2]
    try:
        with (
            runtime.load(folder, name, DEVICE, check_files=False) as engine,
            ThreadPoolExecutor(1) as thread,
        ):
            last = engine.spec.layers[-1]
            for how in ("mean", "none"):
                thread.submit(engine.embed, pack(4096), last, how).result()
    except Esm2Error as error:
        click.echo(error)


if __name__ == "__main__":
    main()
