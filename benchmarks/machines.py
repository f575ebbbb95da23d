"""Machines that the benchmark ran on: one JSON each in docs/performance/machines, and a page."""

import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks.report.markdown import head
from benchmarks.report.markdown import row as markdown_row
from benchmarks.results import Run, read, write
from benchmarks.summary import rows_of
from runtime.instructions import processor_flags

FOLDER = Path(__file__).parents[1] / "docs" / "performance" / "machines"

# As Linux names a processor's flags -> as people do.
_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "BF16",
    "amx_int8": "AMX",
}

_HEAD = """# Machines

`make bench-machine` measured mixed lengths on each, contenders in turn; compare speeds within a
machine alone. *Load before*: processes that computed in the minute before the run. Far from 0,
speeds are too low and ratios rough. *Of the limit* and *x eager* are explained on
[the page of the full run](../../performance.md).

Add yours: `make bench-machine TARGET=onnx,onnx-int8` takes some minutes, writes its JSON beside
this page and the page anew. `make bench-compare OLD=... NEW=...` compares two such files.
"""


def instruction_sets(flags: Iterable[str] | None = None) -> str:
    """The vector instructions of this processor; empty where the system does not say."""
    here = set(processor_flags() or () if flags is None else flags)
    return ", ".join(name for flag, name in _SETS.items() if flag in here)


def add(run: Run, folder: Path = FOLDER) -> Path:
    """Writes the run as its machine's, in place of an older one, and the page anew."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{run.machine} {run.instructions}".lower()).strip("-")
    write(run, folder / f"{name}.json")
    (folder / "README.md").write_text(page(folder))
    return folder / f"{name}.json"


def page(folder: Path = FOLDER) -> str:
    """Of all machines in ``folder``.

    Raises:
        msgspec.ValidationError: a file there is no run.
    """
    return "\n".join([_HEAD, *(_section(read(path)) for path in sorted(folder.glob("*.json")))])


def _section(run: Run) -> str:
    load = "load before unknown" if run.load is None else f"load before {run.load:.1f}"
    lines = [
        f"## {run.machine}",
        "",
        f"{run.instructions or 'unknown instructions'}; Python {run.python}, {run.date}; {load}.",
        "",
        *head(
            ("model, lengths", "", "tokens/s", "of the limit", "x eager", "relative L2", "versions")
        ),
    ]
    for model in run.models:
        for name, workload in model.workloads.items():
            for row in rows_of(model, workload):
                cells = [f"{model.architecture}, {name}", row.label]
                if row.tokens_s is None:
                    cells += [row.verdict.partition(":")[0], "", "", "", ""]
                else:
                    about = model.contenders[row.name]
                    versions = [f"{package} {it}" for package, it in about.versions.items()]
                    eager = "" if row.of_eager is None else f"{row.of_eager:.2f}"
                    wrong = "" if row.verdict == "ok" else f" **{row.verdict}**"
                    cells += [
                        f"{row.tokens_s:,.0f}",
                        f"{row.of_limit:.2f}",
                        eager,
                        f"{row.relative_l2:.0e}{wrong}",
                        ", ".join(
                            [*versions, *([about.instructions] if about.instructions else [])]
                        ),
                    ]
                lines.append(markdown_row(cells))
    return "\n".join([*lines, ""])
