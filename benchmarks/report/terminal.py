"""A run as a table for a terminal."""

import statistics

from benchmarks.results import ModelResult, Run, WorkloadResult
from benchmarks.summary import (
    Headline,
    Row,
    headline_of,
    limit_of,
    memory_growth,
    percentile,
    rows_of,
    spread,
)

LEAST_WIDTH = 30


def table(run: Run) -> str:
    """All of it."""
    lines = [
        f"{run.plan} on {run.machine}, Python {run.python}, {run.date}: "
        f"{run.measured_s / 60:.1f} min, and {run.setup_s / 60:.1f} min of setting up before",
        f"instruction sets: {run.instructions or 'unknown'}",
    ]
    for model in run.models:
        lines += ["", f"=== {model.artifact} ===", *model_lines(model)]
    return "\n".join(lines)


def model_lines(model: ModelResult) -> list[str]:
    """Everything of one model, each part after an empty line."""
    lines = []
    for name, workload in model.workloads.items():
        lines += ["", *_workload(model, name, workload)]
    for part in (_starts(model), _latency(model), _scaling(model), _growth(model)):
        if part:
            lines += ["", *part]
    return [*lines, "", *_headlines(model)]


def _workload(model: ModelResult, name: str, workload: WorkloadResult) -> list[str]:
    limits = limit_of(workload)
    width = _width(model)
    lines = [
        f"{name}: {workload.description}; {workload.proteins} proteins, "
        f"{workload.tokens:,} tokens, {len(limits)} rounds",
        f"  {'':{width}}{'tokens/s':>9}{'spread':>8}{'x eager':>9}{'of limit':>10}"
        f"{'batch':>7}{'at once':>9}{'rel. L2':>9}",
    ]
    lines += [_row(row, width) for row in rows_of(model, workload)]
    if limits:
        rate = statistics.median(workload.matrix_rate) / 1e9
        lines.append(
            f"  {f'the limit, {rate:,.0f} GFLOP/s':{width}}{statistics.median(limits):9,.0f}"
            f"{spread(limits):8.0%}{'':9}{1:10.2f}"
        )
    return lines


def _row(row: Row, width: int) -> str:
    if row.tokens_s is None:
        return f"  {row.label:{width}}{row.verdict[:70]}"
    wrong = "" if row.verdict == "ok" else f"  {row.verdict}"
    eager = f"{row.of_eager:9.2f}" if row.of_eager is not None else f"{'-':>9}"
    return (
        f"  {row.label:{width}}{row.tokens_s:9,.0f}{row.spread:8.0%}{eager}{row.of_limit:10.2f}"
        f"{row.max_tokens:7,}{row.concurrency:9}{row.relative_l2:9.0e}{wrong}"
    )


def _starts(model: ModelResult) -> list[str]:
    width = _width(model)
    lines = [
        "start and memory",
        f"  {'':{width}}{'load, s':>9}{'first embeddings, s':>21}{'peak MB':>9}",
    ]
    for about in model.contenders.values():
        if about.load_s is not None:
            peak = "-" if about.peak_mb is None else f"{about.peak_mb:,.0f}"
            lines.append(
                f"  {about.label:{width}}{about.load_s:9.1f}{about.first_embedding_s or 0:21.1f}"
                f"{peak:>9}"
            )
    return lines


def _latency(model: ModelResult) -> list[str]:
    if model.latency is None or not model.latency.runs_ms:
        return []
    width = _width(model)
    lines = [
        f"one protein of {model.latency.tokens} tokens",
        f"  {'':{width}}{'p50 ms':>9}{'p95 ms':>9}{'runs':>6}",
    ]
    lines += [
        f"  {model.contenders[name].label:{width}}{percentile(runs, 50):9.1f}"
        f"{percentile(runs, 95):9.1f}{len(runs):6}"
        for name, runs in model.latency.runs_ms.items()
    ]
    return lines


def _scaling(model: ModelResult) -> list[str]:
    if not model.scaling:
        return []
    width = _width(model)
    lines = [
        "from one thread to all cores, mixed",
        f"  {'':{width}}{'1 thread':>9}{'all':>9}{'ratio':>7}",
    ]
    for name, scaling in model.scaling.items():
        if scaling.all_cores:
            alone, together = max(scaling.one_thread), max(scaling.all_cores)
            lines.append(
                f"  {model.contenders[name].label:{width}}{alone:9,.0f}{together:9,.0f}"
                f"{together / alone:7.2f}"
            )
    return lines


def _growth(model: ModelResult) -> list[str]:
    if model.growth is None:
        return []
    label = model.contenders[model.growth.contender].label
    lines = [
        f"streams through the runner, {label}",
        f"  {'tokens':>12}{'tokens/s':>10}{'s':>8}{'peak MB':>9}",
    ]
    lines += [
        f"  {p.tokens:12,}{p.tokens / p.seconds:10,.0f}{p.seconds:8.1f}{p.peak_mb:9,.0f}"
        for p in model.growth.points
    ]
    if (ratio := memory_growth(model.growth.points)) is not None:
        lines.append(f"  peak memory of the longest over that of 100,000 tokens: {ratio:.2f}")
    return lines


def _width(model: ModelResult) -> int:
    return max(LEAST_WIDTH, *(len(about.label) + 1 for about in model.contenders.values()))


def _headlines(model: ModelResult) -> list[str]:
    lines = [
        "the best engine here",
        f"  {'':10}{'engine':>22}{'x best peer':>13}{'x eager':>9}{'x extract.py':>14}"
        f"{'of limit':>10}   best peer",
    ]
    for name, workload in model.workloads.items():
        lines.append(f"  {name:10}{_headline(headline_of(model, workload), model)}")
    return lines


def _headline(headline: Headline | None, model: ModelResult) -> str:
    if headline is None:
        return "no engine was right in a dtype like the peers'"
    ratios = (headline.of_peer, headline.of_eager, headline.of_extract)
    cells = [
        "-".rjust(width) if ratio is None else f"{ratio:{width}.2f}"
        for ratio, width in zip(ratios, (13, 9, 14), strict=True)
    ]
    peer = model.contenders[headline.peer].label if headline.peer else "none"
    return f"{headline.engine:>22}{''.join(cells)}{headline.of_limit:10.2f}   {peer}"
