"""A load run as a page with its plot."""

import statistics
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmarks.report.markdown import head, row
from benchmarks.report.plots import _STYLE, BEST, ENGINE, _svg
from benchmarks.serving.load import LoadRun, Measured

BEGIN, END = "<!-- load: begin -->\n", "<!-- load: end -->\n"


def write_page(run: LoadRun, folder: Path) -> None:
    """Puts the tables into ``serving.md`` and the plot beside it.

    Args:
        run: what was measured.
        folder: ``docs/performance``.
    """
    page = folder / "serving.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + BEGIN + tables(run) + END + after)
    (folder / "serving").mkdir(exist_ok=True)
    (folder / "serving" / "latency.svg").write_text(latency(run))


def tables(run: LoadRun) -> str:
    """In Markdown."""
    by_clock = statistics.median(each.tokens_s for each in run.embed)
    by_cores = statistics.median(each.tokens_cpu_s for each in run.embed)
    answers = sum(each.answers for each in (*run.servers, *run.levels.values()))
    heads = (
        "server", "proteins/s", "tokens/s", "of `embed`", "tokens per core second", "of `embed`",
        "p50, s", "p99, s", "answers", "wrong", "lost", "ready after, s", "memory, MB",
    )  # fmt: skip
    lines = [
        f"{run.artifact}, {run.machine}, {run.date}; intervals of {run.seconds:.0f} s, "
        f"{answers:,} answers checked.",
        "",
        *head(heads),
    ]
    embed = Measured(
        "`Model.embed`, no server", by_clock, statistics.median(e.proteins_s for e in run.embed),
        by_cores, rss_mb=statistics.median(e.rss_mb for e in run.embed),
    )  # fmt: skip
    for each in (embed, *run.servers):
        if each.not_run:
            lines.append(f"| {each.label} | not run: {each.not_run[:200]} |" + " |" * 11)
            continue
        shown = [
            each.label, f"{each.proteins_s:.1f}", f"{each.tokens_s:,.0f}",
            f"{each.tokens_s / by_clock:.2f}", f"{each.tokens_cpu_s:,.0f}",
            f"{each.tokens_cpu_s / by_cores:.2f}", f"{each.p50_s:.1f}", f"{each.p99_s:.1f}",
            each.answers, each.wrong, each.lost, f"{each.ready_s:.1f}", f"{each.rss_mb:,.0f}",
        ]  # fmt: skip
        if each is embed:
            shown[6:12] = [""] * 6
        lines.append(row(shown))
    heads = (
        "of the throughput", "proteins/s", "p50, s", "p99, s", "answers", "wrong", "lost"
    )  # fmt: skip
    lines += ["", *head(heads)]
    for share, each in sorted(run.levels.items()):
        shown = [
            f"{float(share):.0%}", f"{each.proteins_s:.1f}", f"{each.p50_s:.2f}",
            f"{each.p99_s:.2f}", each.answers, each.wrong, each.lost,
        ]  # fmt: skip
        lines.append(row(shown))
    return "\n".join(lines) + "\n"


def latency(run: LoadRun) -> str:
    """p50 and p99 over the share of the throughput that is asked for."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 3.2), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        levels = sorted((float(share), each) for share, each in run.levels.items())
        shares = [share for share, _ in levels]
        for name, colour, values in (
            ("p99", BEST, [each.p99_s for _, each in levels]),
            ("p50", ENGINE, [each.p50_s for _, each in levels]),
        ):
            axes.plot(shares, values, color=colour, marker="o", label=name)
            for share, value in zip(shares, values, strict=True):
                axes.annotate(
                    f"{value:.2g}",
                    (share, value),
                    (0, 6),
                    textcoords="offset points",
                    ha="center",
                    size=9,
                )
        axes.set_yscale("log")
        axes.set_xticks(shares, [f"{share:.0%}" for share in shares])
        axes.set(xlabel="of the throughput at 200 connections", ylabel="seconds to an answer")
        axes.grid(axis="y")
        axes.legend()
        return _svg(figure)
