"""The report's plots, as inline SVG that takes its colours from the page."""

import math
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any, Literal, NamedTuple, TypeGuard, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from exporter.parity.report.schema import Report
from exporter.parity.rules.budgets import Budget
from exporter.parity.rules.metrics import UNBOUNDED, TensorError
from exporter.parity.rules.verdict import EngineVerdict
from runtime.manifest_schema import EMBEDDING, HEAD
from runtime.pairs import CONTACTS

# In points, and legible where the page is as narrow as a phone.
WIDTH, HEIGHT, FONT = 440, 330, 13
MAX_LAYER_LABELS = 6

# Each is replaced by a variable of the page, which knows light from dark.
_INK, _MUTED, _LINE = "#111111", "#222222", "#333333"
_ENGINES = "#444441", "#444442", "#444443", "#444444"
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    **{colour: f"var(--engine-{i})" for i, colour in enumerate(_ENGINES, 1)},
}
_KINDS = {
    "representations": "^", "logits": "o", "pooled": "s", EMBEDDING: "D", HEAD: "v", CONTACTS: "P",
}  # fmt: skip
_EAGER = "eager fair-esm"

_STYLE: dict[Any, Any] = {
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
_HOLLOW: dict[str, Any] = {"color": _MUTED, "markerfacecolor": "none"}
_RING: dict[str, Any] = {**_HOLLOW, "markersize": 9}
_LIMIT: dict[str, Any] = {"color": _INK, "linestyle": "--", "linewidth": 1.2, "label": "limit"}

Key = TypeVar("Key")


def can_draw(error: TensorError | None) -> TypeGuard[TensorError]:
    """Whether an error has a place on a logarithmic axis: 0 and unbounded ones have none."""
    return error is not None and 0 < error.relative_l2 < UNBOUNDED


def budgets_of(report: Report, verdict: EngineVerdict) -> list[Budget]:
    """The rules that this engine was judged by: an int8 engine has its own."""
    checked = {check.name for check in verdict.checks}
    return [budget for budget in report.budgets if budget.name in checked]


def error_by_length(report: Report) -> dict[str, str]:
    """Relative L2 against the longest protein of each pack, one plot for each engine.

    All have the same axes. An engine without an error to draw has no plot.
    """
    limits = {
        verdict.engine: [
            budget.limit
            for budget in budgets_of(report, verdict)
            if budget.quantity == "relative_l2"
        ]
        for verdict in report.engines
    }
    all_limits = [limit for of_engine in limits.values() for limit in of_engine]
    clouds = {
        (i, verdict.engine): _clouds(verdict, _ENGINES[i % len(_ENGINES)])
        for i, verdict in enumerate(report.engines)
        if any(can_draw(row.engine) for row in verdict.rows)
    }
    points = [point for found in clouds.values() for cloud in found for point in cloud.points]
    plots = {}
    for (i, engine), found in clouds.items():
        with matplotlib.rc_context(_STYLE):
            figure, axes = _figure()
            axes.set(xlabel="tokens of the pack's longest protein", ylabel="relative L2")
            _logarithmic(axes, "x", [length for length, _ in points])
            _logarithmic(axes, "y", [*(error for _, error in points), *all_limits])
            for cloud in found:
                lengths, errors = zip(*cloud.points, strict=True)
                axes.plot(lengths, errors, **cloud.look)
            axes.plot([], [], "o", **_RING, label=_EAGER)
            for limit in limits[engine]:
                axes.axhline(limit, **_LIMIT)
            plots[engine] = _svg(figure, f"length-{i}")
    return plots


def error_by_layer(report: Report) -> str:
    """The worst relative L2 of each output over all packs; empty if there is none to draw."""
    series = {_EAGER: _worst((r.tensor, r.eager) for v in report.engines for r in v.rows)}
    series |= {v.engine: _worst((r.tensor, r.engine) for r in v.rows) for v in report.engines}
    tensors = sorted({tensor for errors in series.values() for tensor in errors}, key=_order)
    if not tensors:
        return ""
    places = _places(tensors)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        axes.set(xlabel="exported layer, and outputs", ylabel="worst relative L2")
        _logarithmic(axes, "y", [error for errors in series.values() for error in errors.values()])
        for i, (name, errors) in enumerate(series.items()):
            # Side by side, for they are often equal.
            shift = 0.14 * (i - (len(series) - 1) / 2)
            x = [places[tensor].x + shift * places[tensor].width for tensor in errors]
            look = {"color": _ENGINES[(i - 1) % len(_ENGINES)]} if i else _HOLLOW
            if errors:
                axes.plot(x, list(errors.values()), "o^sD"[i % 4], label=name, **look)
        labelled = [place for place in places.values() if place.label]
        axes.set_xticks([place.x for place in labelled], [place.label for place in labelled])
        return _svg(figure, "layers")


def domain(report: Report) -> str:
    """Each pack by its longest protein and its number of proteins; empty if none was compared."""
    longest = {row.pack: row.longest for v in report.engines for row in v.rows}
    packs = {name: sizes for name, sizes in report.packs.items() if name in longest}
    if not packs:
        return ""
    x, y = [longest[name] for name in packs], [proteins for proteins, _ in packs.values()]
    # By area: a pack of ten times the tokens has ten times the ink.
    most = max(tokens for _, tokens in packs.values())
    areas = [max(12.0, 500 * tokens / most) for _, tokens in packs.values()]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        axes.set(xlabel="tokens of the pack's longest protein", ylabel="proteins of the pack")
        _logarithmic(axes, "x", [0.5 * min(x), 1.6 * max(x)])
        _logarithmic(axes, "y", [0.6, 2.5 * max(y)])
        axes.scatter(
            x, y, areas, color=_ENGINES[0], alpha=0.45, linewidths=0, zorder=3, label="a pack"
        )
        largest = max(packs, key=lambda name: packs[name][1])
        for name in dict.fromkeys([largest, max(packs, key=lambda name: longest[name])]):
            axes.annotate(
                f"{packs[name][1]:,} tokens", (longest[name], packs[name][0]), (6, 8),
                textcoords="offset points", ha="right" if longest[name] > 500 else "left",
            )  # fmt: skip
        return _svg(figure, "domain")


class _Place(NamedTuple):
    x: float
    width: float
    label: str


def _places(tensors: Sequence[str]) -> dict[str, _Place]:
    """Layers from the left, of which few have a label; then the other outputs, spaced for words."""
    layers = [tensor for tensor in tensors if _kind(tensor) == "representations"]
    step = math.ceil(len(layers) / MAX_LAYER_LABELS)
    places = {
        tensor: _Place(i, 1, "" if i % step else tensor.partition(".")[2])
        for i, tensor in enumerate(layers)
    }
    width = max(1.0, len(layers) / 3)
    for i, tensor in enumerate(tensors[len(layers) :], 1):
        label = tensor.replace(" the ", " the\n").replace(" by ", "\nby ")
        places[tensor] = _Place(len(layers) - 1 + i * width, width, label)
    return places


class _Cloud(NamedTuple):
    points: list[tuple[int, float]]
    look: dict[str, Any]


def _clouds(verdict: EngineVerdict, colour: str) -> list[_Cloud]:
    """A ring of eager fair-esm's error around the engine's, so that equal ones are both seen."""
    clouds = []
    for kind, marker in _KINDS.items():
        rows = [row for row in verdict.rows if _kind(row.tensor) == kind]
        label = "worst representation" if kind == "representations" else kind
        mark = {"color": colour, "label": label, "zorder": 3}
        for look, errors in (
            (_RING, _worst(((row.pack, row.longest), row.eager) for row in rows)),
            (mark, _worst(((row.pack, row.longest), row.engine) for row in rows)),
        ):
            points = [(length, error) for (_, length), error in errors.items()]
            if points:
                clouds.append(_Cloud(points, {"linestyle": "none", "marker": marker, **look}))
    return clouds


def _kind(tensor: str) -> str:
    return tensor.partition(".")[0]


def _order(tensor: str) -> tuple[int, int]:
    kind, _, layer = tensor.partition(".")
    return list(_KINDS).index(kind), int(layer or 0)


def _worst(errors: Iterable[tuple[Key, TensorError | None]]) -> dict[Key, float]:
    worst: dict[Key, float] = {}
    for key, error in errors:
        if can_draw(error):
            worst[key] = max(error.relative_l2, worst.get(key, 0.0))
    return worst


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _logarithmic(axes: Axes, name: Literal["x", "y"], values: Sequence[float]) -> None:
    """Scales an axis to ``values``; what is drawn later does not change it."""
    low, high = min(values) / 1.6, max(values) * 1.6
    axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 100 else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda x, _: f"{x:.0e}".replace("e-0", "e-") if x < 0.01 else f"{x:g}")


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
