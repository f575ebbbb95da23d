"""The report's plots, as inline SVG that takes its colours from the page."""

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from exporter.parity.metrics import UNBOUNDED, TensorError
from exporter.parity.report import Report
from exporter.parity.verdict import RUNTIME_POOLED, EngineVerdict, Row

# In points, and legible where the page is as narrow as a phone.
WIDTH, HEIGHT, FONT = 440, 330, 13
MAX_LAYER_LABELS = 10

# Each is replaced by a variable of the page, which knows light from dark.
_INK, _MUTED, _LINE = "#111111", "#222222", "#333333"
_ENGINES = "#444441", "#444442", "#444443", "#444444"
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    **{colour: f"var(--engine-{i})" for i, colour in enumerate(_ENGINES, 1)},
}
_KINDS = {"representations": "^", "logits": "o", "pooled": "s", RUNTIME_POOLED: "D"}
_EAGER = "eager fair-esm"

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "parity",
    "text.parse_math": False,  # a name with dollar signs is no formula
    "font.size": FONT,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _LINE,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.handlelength": 1.5,
    "lines.markersize": 5.5,
}
_HOLLOW = {"color": _MUTED, "markerfacecolor": "none"}
_LIMIT = {"color": _INK, "linestyle": "--", "linewidth": 1.2, "label": "limit"}


def can_draw(error: TensorError | None) -> bool:
    """Whether an error has a place on a logarithmic axis: 0 and unbounded ones have none."""
    return error is not None and 0 < error.relative_l2 < UNBOUNDED


def error_by_length(report: Report) -> dict[str, str]:
    """Relative L2 against the longest protein of each pack, one plot for each engine.

    All have the same axes. An engine without an error to draw has no plot.
    """
    drawn = [v for v in report.engines if any(can_draw(row.engine) for row in v.rows)]
    limits = [budget.limit for budget in report.budgets if budget.quantity == "relative_l2"]
    rows = [row for verdict in drawn for row in verdict.rows]
    errors = [e.relative_l2 for row in rows for e in (row.engine, row.eager) if can_draw(e)]
    plots = {}
    for i, verdict in enumerate(report.engines):
        if verdict not in drawn:
            continue
        with matplotlib.rc_context(_STYLE):
            figure, axes = _figure()
            axes.set(xscale="log", xlabel="tokens of the pack's longest protein")
            axes.set(yscale="log", ylabel="relative L2")
            _fit(axes.xaxis, [row.longest for row in rows])
            _fit(axes.yaxis, [*errors, *limits])
            _draw_lengths(axes, verdict, _ENGINES[i % len(_ENGINES)])
            for limit in limits:
                axes.axhline(limit, **_LIMIT)
            plots[verdict.engine] = _svg(figure, f"length-{i}")
    return plots


def error_by_layer(report: Report) -> str:
    """The worst relative L2 of each output over all packs; empty if there is none to draw."""
    series = {_EAGER: _worst((r.tensor, r.eager) for v in report.engines for r in v.rows)}
    series |= {v.engine: _worst((r.tensor, r.engine) for r in v.rows) for v in report.engines}
    tensors = sorted({tensor for errors in series.values() for tensor in errors}, key=_order)
    if not tensors:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        axes.set(yscale="log", ylabel="worst relative L2", xlabel="exported layer, and outputs")
        _fit(axes.yaxis, [error for errors in series.values() for error in errors.values()])
        looks = [_HOLLOW, *({"color": colour} for colour in _ENGINES)]
        for i, (name, errors) in enumerate(series.items()):
            # Side by side, for they are often equal.
            shift = 0.14 * (i - (len(series) - 1) / 2)
            x = [tensors.index(tensor) + shift for tensor in errors]
            if errors:
                marker = "o^sD"[i % 4]
                axes.plot(x, list(errors.values()), marker, label=name, **looks[i % len(looks)])
        _label_tensors(axes, tensors)
        return _svg(figure, "layers")


def _draw_lengths(axes: Axes, verdict: EngineVerdict, colour: str) -> None:
    """A ring of eager fair-esm's error around the engine's, so that equal ones are both seen."""
    for kind, marker in _KINDS.items():
        rows = [row for row in verdict.rows if _kind(row.tensor) == kind]
        _scatter(axes, rows, "eager", marker, **_HOLLOW, markersize=9)
        _scatter(axes, rows, "engine", marker, color=colour, label=kind, zorder=3)
    axes.plot([], [], "o", **_HOLLOW, markersize=9, label=_EAGER)


def _scatter(axes: Axes, rows: Sequence[Row], whose: str, marker: str, **look: Any) -> None:
    found = [(row.longest, getattr(row, whose)) for row in rows]
    points = [(length, error.relative_l2) for length, error in found if can_draw(error)]
    if points:
        axes.plot(*zip(*points, strict=True), marker, **look)


def _kind(tensor: str) -> str:
    return tensor.partition(".")[0]


def _order(tensor: str) -> tuple[int, int]:
    kind, _, layer = tensor.partition(".")
    return list(_KINDS).index(kind), int(layer or 0)


def _worst(errors: Iterable[tuple[str, TensorError | None]]) -> Mapping[str, float]:
    worst: dict[str, float] = {}
    for tensor, error in errors:
        if can_draw(error):
            worst[tensor] = max(error.relative_l2, worst.get(tensor, 0.0))
    return worst


def _label_tensors(axes: Axes, tensors: Sequence[str]) -> None:
    layers = [tensor for tensor in tensors if _kind(tensor) == "representations"]
    step = -(-len(layers) // MAX_LAYER_LABELS) or 1
    labels = {i: layers[i].partition(".")[2] for i in range(0, len(layers), step)}
    labels |= {i: tensors[i].replace(" ", "\n", 1) for i in range(len(layers), len(tensors))}
    axes.set_xticks(list(labels), list(labels.values()))
    axes.set_xlim(-0.5, len(tensors) - 0.5)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _fit(axis: Axis, values: Sequence[float]) -> None:
    low, high = min(values) / 1.6, max(values) * 1.6
    axis.set_view_interval(low, high, ignore=True)
    axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 100 else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda x, _: f"{x:g}".replace("e-0", "e-"))


def _svg(figure: Figure, name: str) -> str:
    """With ``name`` before each id, for ids must be unique in the page."""
    figure.legend(loc="outside upper left", ncols=2)
    text = StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", metadata=no_metadata)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    for before in (' id="', '"#', "url(#"):
        svg = svg.replace(before, f"{before}{name}-")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg
