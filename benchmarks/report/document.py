"""A run as docs/performance.md, with its plots beside it."""

import statistics
from pathlib import Path

import jinja2

from benchmarks.limit import FLOPS_PER_EXPONENTIAL
from benchmarks.report.plots import plots_of
from benchmarks.results import Run
from benchmarks.summary import headline_of, limit_of, memory_growth, percentile, rows_of, spread

TEMPLATES = Path(__file__).parent / "templates"


def write_document(run: Run, docs: Path) -> None:
    """Writes ``performance.md`` and ``performance/*.svg`` into ``docs``."""
    folder = docs / "performance"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    plots: dict[str, dict[str, str]] = {}
    for model in run.models:
        plots[model.architecture] = {}
        for name, svg in plots_of(model).items():
            file = f"{model.architecture}-{name}.svg"
            (folder / file).write_text(svg)
            plots[model.architecture][name] = f"performance/{file}"
    (docs / "performance.md").write_text(render(run, plots))


def render(run: Run, plots: dict[str, dict[str, str]]) -> str:
    """The page.

    Args:
        run: what was measured.
        plots: architecture -> name of the plot -> its path from the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["median"] = statistics.median
    environment.filters["number"] = lambda value: "" if value is None else f"{value:,.0f}"
    environment.filters["ratio"] = lambda value: "–" if value is None else f"{value:.2f}"
    environment.filters["share"] = lambda value: f"{value:.0%}"
    environment.filters["error"] = lambda value: f"{value:.0e}".replace("e-0", "e-")
    environment.filters["cell"] = lambda text: text.replace("|", "\\|").replace("\n", " ")
    return environment.get_template("performance.md.j2").render(
        run=run,
        plots=plots,
        flops_per_exponential=FLOPS_PER_EXPONENTIAL,
        rows_of=rows_of,
        headline_of=headline_of,
        limit_of=limit_of,
        percentile=percentile,
        spread=spread,
        memory_growth=memory_growth,
    )
