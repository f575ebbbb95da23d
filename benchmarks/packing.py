"""The packer on its own: what it costs, how full its packs are, how even their work.

python -m benchmarks.packing
"""

import json
import statistics
import time
from collections.abc import Callable
from itertools import chain
from typing import Any

import click
import numpy as np

from benchmarks.workload import WORKLOADS, Lengths, uniform
from runtime.bin_packing import even_packs, first_fit_decreasing
from runtime.runner import WINDOW_FILL, WINDOW_PACKS

Packer = Callable[[Lengths, int], list[list[int]]]

PROTEINS = 1_000_000
WINDOWS = 100
MAX_TOKENS = 4096
DISTRIBUTIONS = {
    **{name: WORKLOADS[name].sample for name in ("mixed", "short", "skewed")},
    "500 to 1,022": uniform(500, 1022),
}
# As the runner packs them, window by window.
STREAMED = ("mixed", "short")
PACKERS: dict[str, Packer] = {
    "even_packs": even_packs,
    "first_fit_decreasing": first_fit_decreasing,
}


def measure(
    proteins: int = PROTEINS, max_tokens: int = MAX_TOKENS, repeats: int = 3
) -> dict[str, Any]:
    """Packs ``proteins`` lengths of each distribution with each packer.

    Returns:
        ``all_at_once``: for each distribution and packer ``seconds`` (median of the repeats),
        ``efficiency`` (tokens over packs times budget), and of the work per pack (the sum of
        squared lengths) the coefficient of variation ``work_cv`` and ``work_max_over_mean``.
        ``windows``: the same without seconds for a stream that the runner packs window by window;
        spreads are means over the windows.
    """
    drawn = {name: sample(proteins) for name, sample in DISTRIBUTIONS.items()}
    return {
        "proteins": proteins,
        "max_tokens": max_tokens,
        "all_at_once": {
            name: {
                packer: {
                    "seconds": _median_seconds(PACKERS[packer], lengths, max_tokens, repeats),
                    **quality(lengths, PACKERS[packer](lengths, max_tokens), max_tokens),
                }
                for packer in PACKERS
            }
            for name, lengths in drawn.items()
        },
        "windows": {
            name: {packer: _windows(drawn[name], PACKERS[packer], max_tokens) for packer in PACKERS}
            for name in STREAMED
        },
    }


def quality(lengths: Lengths, packs: list[list[int]], max_tokens: int) -> dict[str, float]:
    """How full the packs are, and how even their work; checks that nothing is lost or too full."""
    members = np.fromiter(chain.from_iterable(packs), np.int64)
    starts = np.cumsum([0] + [len(pack) for pack in packs[:-1]])
    tokens = np.add.reduceat(lengths[members], starts)
    if not (np.bincount(members, minlength=len(lengths)) == 1).all() or tokens.max() > max_tokens:
        raise RuntimeError("the packs are not a permutation of the proteins, or one is too full")
    work = np.add.reduceat(lengths[members].astype(np.float64) ** 2, starts)
    return {
        "packs": len(packs),
        "efficiency": float(lengths.sum() / (len(packs) * max_tokens)),
        "work_cv": float(work.std() / work.mean()),
        "work_max_over_mean": float(work.max() / work.mean()),
    }


def _windows(lengths: Lengths, packer: Packer, max_tokens: int) -> dict[str, float]:
    """The first ``WINDOWS`` full windows, cut as ``AsyncInferenceRunner`` cuts them."""
    budget = WINDOW_FILL * WINDOW_PACKS * max_tokens
    ends = np.cumsum(lengths)
    start = 0
    figures = []
    for _ in range(WINDOWS):
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + budget)) + 1
        if end > len(lengths):
            break
        window = lengths[start:end]
        figures.append(quality(window, packer(window, max_tokens), max_tokens))
        start = end
    if not figures:
        raise ValueError(f"{len(lengths)} proteins do not fill a window of {budget:.0f} tokens")
    packs = sum(figure["packs"] for figure in figures)
    return {
        "efficiency": float(ends[start - 1] / (packs * max_tokens)),
        **{
            key: statistics.mean(figure[key] for figure in figures)
            for key in ("work_cv", "work_max_over_mean")
        },
    }


def _median_seconds(packer: Packer, lengths: Lengths, max_tokens: int, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        packer(lengths, max_tokens)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


@click.command()
@click.option("--proteins", default=PROTEINS, show_default=True, type=click.IntRange(min=10_000))
@click.option("--max-tokens", default=MAX_TOKENS, show_default=True, type=click.IntRange(min=1024))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(proteins: int, max_tokens: int, repeats: int, as_json: bool) -> None:
    """Measure the packer on lengths alone; no engine is needed."""
    figures = measure(proteins, max_tokens, repeats)
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    click.echo(f"{proteins:,} proteins, packs of {max_tokens:,} tokens")
    for part in ("all_at_once", "windows"):
        click.echo(
            f"\n{part:20} {'packer':22} {'seconds':>8} {'efficiency':>11} {'CV':>7} max/mean"
        )
        for name, packers in figures[part].items():
            for packer, row in packers.items():
                seconds = f"{row['seconds']:8.2f}" if "seconds" in row else " " * 8
                click.echo(
                    f"{name:20} {packer:22} {seconds} {row['efficiency']:11.3f} "
                    f"{row['work_cv']:7.3f} {row['work_max_over_mean']:8.2f}"
                )


if __name__ == "__main__":
    main()
