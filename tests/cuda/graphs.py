"""Packs of many sizes by captured CUDA graphs, with the stand-in as the card.

``python -m tests.cuda.graphs ARTIFACT ENGINE``; prints how much more memory PyTorch holds when
twelve sizes are captured than with the largest alone. What a card refuses while a stream is
captured, the stand-in refuses, and says so on stderr.
"""

import sys
import threading
from contextlib import suppress
from pathlib import Path

import click
import torch

import runtime
from tests.cuda.forward import pack

SIZES = (4096, 3072, 2048, 1536, 1024, 768, 512, 384, 256, 192, 128, 96)


def main() -> None:
    """Prints the ratio."""
    folder, name = Path(sys.argv[1]), sys.argv[2]
    held = []
    # Another thread, that waits for its results.
    waiting, done = torch.cuda.Event(), threading.Event()
    waiting.record()

    def wait() -> None:
        while not done.is_set():
            with suppress(RuntimeError):  # of a capture that this spoils
                waiting.synchronize()

    threading.Thread(target=wait, daemon=True).start()
    with runtime.load(folder, name, "cuda", cuda_graphs=True, check_files=False) as engine:
        weights = torch.cuda.memory_reserved()
        for num_tokens in SIZES:
            engine.embed(pack(num_tokens), engine.spec.layers[-1], "mean")
            held.append(torch.cuda.memory_reserved() - weights)
    done.set()
    click.echo(f"{held[-1] / held[0]:.2f}")


if __name__ == "__main__":
    main()
