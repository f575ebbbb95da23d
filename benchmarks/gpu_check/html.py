"""``gpu-report.html``: the report for people, one file that opens offline."""

import statistics
from pathlib import Path
from typing import get_args

import jinja2

from benchmarks.gpu_check.results import Kind, Report, replace
from benchmarks.gpu_check.summary import aims_of, counts, is_passed
from benchmarks.summary import of_best_peer, rows_of

FILE_NAME = "gpu-report.html"
TEMPLATES = Path(__file__).parent / "templates"


def render(report: Report) -> str:
    """The whole page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": lambda value: "–" if value is None else f"{value:,.0f}",
        "median": statistics.median,
        "ratio": lambda value: "–" if value is None else f"{value:.2f}",
        "percent": lambda value: "–" if value is None else f"{value:.0%}",
        "error": lambda value: "–" if value is None else _error(value),
        "tera": lambda value: f"{value / 1e12:,.2f}",
    }
    by_kind = {
        kind: [step for step in report.steps if step.kind == kind] for kind in get_args(Kind)
    }
    return environment.get_template("gpu.html.j2").render(
        report=report,
        passed=is_passed(report),
        counts=counts(report),
        aims=aims_of(report),
        rates=by_kind["matrix rate"],
        waits={step.name: step for step in by_kind["synchronisation"]},
        graphs={step.name: step for step in by_kind["graphs"]},
        cpp={step.name: step for step in by_kind["c++"]},
        kernels=by_kind["attention"],
        gates=by_kind["gate"],
        benchmarks=by_kind["benchmark"],
        others=[step for step in report.steps if step.status != "passed"],
        rows_of=rows_of,
        of_best_peer=of_best_peer,
    )


def _error(value: float) -> str:
    """As ``5.7e-3``."""
    return f"{value:.1e}".replace("e-0", "e-") if value else "0"


def write(report: Report, folder: Path) -> Path:
    """Writes ``gpu-report.html``."""
    return replace(folder / FILE_NAME, render(report).encode())
