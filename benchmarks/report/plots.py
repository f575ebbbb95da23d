"""A run as SVG plots; white behind them, so that they are read on a dark page too."""

from collections.abc import Sequence
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from benchmarks.results import ModelResult
from benchmarks.summary import rows_of

# Peers grey, engines blue; the best engine of a workload darker.
PEER, ENGINE, BEST, INK, FAINT = "#a8adb5", "#7fb0e0", "#1f6fbf", "#1b1f24", "#d8dce1"

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "performance",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "legend.frameon": False,
}


def plots_of(model: ModelResult) -> dict[str, str]:
    """File name without ending -> SVG; what was not measured has no plot."""
    plots = {"throughput": throughput(model)}
    if model.scaling:
        plots["scaling"] = scaling(model)
    if model.growth is not None and model.growth.points:
        plots["growth"] = growth(model)
    return plots


def throughput(model: ModelResult) -> str:
    """Share of the limit, each workload beside the others; tokens/s stand on the bars."""
    with matplotlib.rc_context(_STYLE):
        names = list(model.workloads)
        rows = {name: rows_of(model, model.workloads[name]) for name in names}
        # The same order everywhere, from the slowest on the first workload.
        order = [r.name for r in sorted(rows[names[0]], key=lambda row: row.of_limit or 0)]
        figure = _figure(2.1 + 2.35 * max(2, len(names)), 1.4 + 0.3 * len(order))
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            by_name = {row.name: row for row in rows[name] if row.verdict == "ok"}
            best = max(
                (r for r in by_name.values() if r.kind == "engine"),
                key=lambda row: row.of_limit or 0,
                default=None,
            )
            for place, contender in enumerate(order):
                row = by_name.get(contender)
                if row is None or row.of_limit is None:
                    verdict = next(r.verdict for r in rows[name] if r.name == contender)
                    axes.text(0.02, place, verdict[:12].partition(":")[0], va="center", size=9)
                    continue
                colour = PEER if row.kind == "peer" else BEST if row == best else ENGINE
                axes.barh(place, row.of_limit, color=colour, height=0.72)
                # Inside where it would cross the line of the limit.
                inside = row.of_limit > 0.7
                axes.text(
                    row.of_limit + (-0.02 if inside else 0.02), place, f"{row.tokens_s:,.0f}",
                    va="center", ha="right" if inside else "left", size=9,
                    color="white" if inside and colour == BEST else INK,
                )  # fmt: skip
            axes.axvline(1, color=INK, linestyle="--", linewidth=1)
            axes.set_title(name, size=11)
            most = max((row.of_limit or 0 for row in by_name.values()), default=0)
            axes.set(xlim=(0, max(1.1, 1.05 * most)), xlabel="share of the limit")
            axes.grid(axis="x")
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
            axes.tick_params(axis="y", length=0)
        labels = [model.contenders[contender].label for contender in order]
        panels[0].set_yticks(range(len(order)), labels)
        for colour, label in ((PEER, "peers"), (ENGINE, "engines here"), (BEST, "the best one")):
            panels[0].barh([0], [0], color=colour, label=label)
        panels[0].plot([], [], color=INK, linestyle="--", linewidth=1, label="the limit")
        figure.legend(loc="outside upper right", ncols=4, title="tokens/s on the bars")
        return _svg(figure)


def scaling(model: ModelResult) -> str:
    """Tokens/s on one thread and on all cores, with the ratio."""
    with matplotlib.rc_context(_STYLE):
        measured = [
            (model.contenders[name], max(pair.one_thread), max(pair.all_cores))
            for name, pair in model.scaling.items()
            if pair.all_cores and pair.one_thread
        ]
        measured.sort(key=lambda item: item[2])
        figure = _figure(6.6, 0.9 + 0.33 * len(measured))
        axes = figure.add_subplot()
        for place, (about, alone, together) in enumerate(measured):
            colour = ENGINE if about.kind == "engine" else PEER
            axes.plot([alone, together], [place, place], color=colour, linewidth=3, zorder=1)
            axes.scatter([alone], [place], color="white", edgecolor=INK, s=34, zorder=2)
            axes.scatter([together], [place], color=INK, s=34, zorder=2)
            axes.annotate(
                f"x {together / alone:.2f}", (together, place), (8, 0),
                textcoords="offset points", va="center", size=9,
            )  # fmt: skip
        axes.scatter([], [], color="white", edgecolor=INK, label="one thread")
        axes.scatter([], [], color=INK, label="all cores")
        axes.set_yticks(range(len(measured)), [about.label for about, _, _ in measured])
        axes.tick_params(axis="y", length=0)
        widest = max((together for _, _, together in measured), default=1)
        axes.set(xlabel="tokens/s, mixed lengths", xlim=(0, 1.15 * widest))  # the ratio's place
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(_thousands())
        axes.grid(axis="x")
        figure.legend(loc="outside upper right", ncols=2)
        return _svg(figure)


def growth(model: ModelResult) -> str:
    """Seconds and peak memory against the tokens of a stream."""
    assert model.growth is not None
    points = model.growth.points
    tokens = [point.tokens for point in points]
    with matplotlib.rc_context(_STYLE):
        figure = _figure(7.4, 3.0)
        cost, memory = figure.subplots(1, 2)
        rates = [point.tokens / point.seconds for point in points]
        _against_tokens(cost, tokens, rates, "tokens/s")
        _against_tokens(memory, tokens, [point.peak_mb for point in points], "peak memory, MB")
        return _svg(figure)


def _against_tokens(axes: Axes, tokens: Sequence[int], values: Sequence[float], name: str) -> None:
    axes.plot(tokens, values, "o-", color=BEST)
    axes.set(xscale="log", xlabel="tokens in the stream", ylim=(0, 1.25 * max(values)))
    axes.set_title(name, size=11)
    for x, y in zip(tokens, values, strict=True):
        axes.annotate(f"{y:,.0f}", (x, y), (0, 7), textcoords="offset points", ha="center", size=9)
    axes.set_xticks(tokens, [_short(count) for count in tokens])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(_thousands())
    axes.margins(x=0.12)
    axes.grid(axis="y")


def _short(count: int) -> str:
    if count >= 1_000_000:
        return f"{count / 1_000_000:g}M"
    return f"{count / 1000:g}k" if count >= 1000 else str(count)


def _thousands() -> FuncFormatter:
    return FuncFormatter(lambda value, _: f"{value:,.0f}")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _svg(figure: Figure) -> str:
    text = StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", metadata=no_metadata)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
