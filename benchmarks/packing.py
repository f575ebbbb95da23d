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

from benchmarks.workload import SETS
from runtime.bin_packing import even_packs, first_fit_decreasing
from runtime.runner import WINDOW_FILL, WINDOW_PACKS

Packer = Callable[[np.ndarray, int], list[list[int]]]

PROTEINS = 1_000_000
# Where a packer that compares every protein with every pack still takes seconds only.
PROTEINS_PLAIN = 20_000
WINDOWS = 100
MAX_TOKENS = 4096
DISTRIBUTIONS = ("mixed", "short", "uniform-long", "skewed")
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
        ``windows``: the same without seconds for the stream of mixed and short proteins that the
        runner packs window by window; spreads are means over the windows.
        ``against_plain``: seconds of each packer and of first-fit decreasing without counting,
        for a number of proteins that it can take.
    """
    drawn = {name: draw(name, proteins) for name in DISTRIBUTIONS}
    small = draw("mixed", PROTEINS_PLAIN)
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
            name: {
                packer: _windows(draw(name, proteins), PACKERS[packer], max_tokens)
                for packer in PACKERS
            }
            for name in SETS
        },
        "against_plain": {
            "proteins": PROTEINS_PLAIN,
            "seconds": {
                name: _median_seconds(packer, small, max_tokens, 1)
                for name, packer in {"plain": plain_first_fit_decreasing, **PACKERS}.items()
            },
        },
    }


def draw(name: str, proteins: int) -> np.ndarray:
    """``[proteins]`` lengths in tokens, the same every time.

    ``mixed`` and ``short`` as in the other benchmarks; ``uniform-long`` 500 to 1,022 residues;
    ``skewed`` one protein of 1,000 tokens to 100 of 30.
    """
    random = np.random.default_rng(20)
    if name == "uniform-long":
        return random.integers(500, 1023, proteins) + 2
    if name == "skewed":
        return np.where(random.random(proteins) < 1 / 101, 1000, 30)
    spec = SETS[name]
    residues = np.exp(random.normal(np.log(spec["median"]), spec["sigma"], proteins))
    return residues.clip(spec["low"], spec["high"]).astype(np.int64) + 2


def quality(lengths: np.ndarray, packs: list[list[int]], max_tokens: int) -> dict[str, float]:
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


def plain_first_fit_decreasing(lengths: np.ndarray, max_tokens: int) -> list[list[int]]:
    """Each protein looks at every pack, as the runtime did before it counted equal lengths."""
    packs: list[list[int]] = []
    room: list[int] = []
    sizes = lengths.tolist()
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        length = sizes[index]
        for pack, free in enumerate(room):
            if length <= free:
                packs[pack].append(index)
                room[pack] -= length
                break
        else:
            packs.append([index])
            room.append(max_tokens - length)
    return packs


def _windows(lengths: np.ndarray, packer: Packer, max_tokens: int) -> dict[str, float]:
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


def _median_seconds(packer: Packer, lengths: np.ndarray, max_tokens: int, repeats: int) -> float:
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
    plain = figures["against_plain"]
    click.echo(f"\nseconds for {plain['proteins']:,} mixed proteins:")
    for packer, taken in plain["seconds"].items():
        click.echo(f"  {packer:22} {taken:8.3f}")


if __name__ == "__main__":
    main()
