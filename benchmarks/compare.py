"""Compares two runs of one plan by ratios within each, so that the machines' own speed cancels.

python -m benchmarks.compare OLD.json NEW.json
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec

from benchmarks.contenders import EXTRACT, PEER_LABELS
from benchmarks.results import ModelResult, Run, WorkloadResult, read
from benchmarks.summary import limit_of, median_ratio, rows_of

LIMIT = "limit"


@dataclass(frozen=True)
class Change:
    """One contender on one workload: its speed over the base's, before and now.

    ``new`` is None where it was right before and now did not run or was wrong: see ``verdict``.
    """

    place: str
    label: str
    verdict: str
    old: float
    new: float | None

    def is_slower(self, tolerance: float) -> bool:
        """By more than ``tolerance``, a share; what no longer runs or is right counts."""
        return self.new is None or self.new < (1 - tolerance) * self.old


def changes(old: Run, new: Run, base: str = LIMIT) -> list[Change]:
    """Of all contenders that were right in ``old``; peers that ``new`` left out are not compared.

    Args:
        old: the run before.
        new: the run now, of the same plan.
        base: ``limit``, or a contender's name.

    Raises:
        ValueError: the plans differ, nothing is in both, or a run lacks the base.
    """
    if old.plan != new.plan:
        raise ValueError(f"OLD is of plan {old.plan!r}, NEW of {new.plan!r}: other proteins")
    found = [change for model in old.models for change in _changes(model, new, base)]
    if not found:
        raise ValueError("nothing to compare: no model and workload is in both")
    return found


def _changes(model: ModelResult, new: Run, base: str) -> Iterator[Change]:
    now = next((m for m in new.models if m.architecture == model.architecture), None)
    for name, workload in model.workloads.items():
        if now is None or name not in now.workloads:
            continue
        then_ratios = _ratios(model, workload, base)
        now_ratios = _ratios(now, now.workloads[name], base)
        verdicts = {row.name: row.verdict for row in rows_of(now, now.workloads[name])}
        for contender, ratio in then_ratios.items():
            about = model.contenders[contender]
            if contender != base and (contender in verdicts or about.kind == "engine"):
                verdict = verdicts.get(contender, "not in NEW")
                place = f"{model.architecture}, {name}"
                yield Change(place, about.label, verdict, ratio, now_ratios.get(contender))


def _ratios(model: ModelResult, workload: WorkloadResult, base: str) -> dict[str, float]:
    """Speed over the base's, round by round, of those that were right in all of its rounds."""
    right = {row.name for row in rows_of(model, workload) if row.verdict == "ok"}
    if base != LIMIT and base not in right:
        raise ValueError(f"{base} did not run, or was wrong, on {model.architecture}: take another")
    speeds = limit_of(workload) if base == LIMIT else workload.timings[base].tokens_s
    return {
        name: median_ratio(timing.tokens_s, speeds)
        for name, timing in workload.timings.items()
        if name in right
    }


@click.command()
@click.argument("old", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("new", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--base", type=click.Choice([LIMIT, *PEER_LABELS, EXTRACT]), default=LIMIT,
              show_default=True, help="What speeds are divided by, within each run.")  # fmt: skip
@click.option("--tolerance", type=click.FloatRange(0, 1), default=0.1, show_default=True,
              help="A contender may be slower by this share.")  # fmt: skip
def main(old: Path, new: Path, base: str, tolerance: float) -> None:
    """Compare NEW with OLD (benchmarks/results/PLAN.json); 1 if a contender became slower."""
    try:
        found = changes(read(old), read(new), base)
    except (ValueError, msgspec.DecodeError) as error:
        raise click.UsageError(f"cannot compare {old} and {new}: {error}") from None
    slower = 0
    click.echo(f"{'x ' + base:56}{'old':>8}{'new':>8}{'change':>9}")
    for change in found:
        bad = change.is_slower(tolerance)
        slower += bad
        cells = f"{change.old:8.2f}"
        if change.new is None:
            cells += f"  {change.verdict}"
        else:
            cells += f"{change.new:8.2f}{change.new / change.old - 1:+9.0%}"
        click.echo(f"{change.place + ': ' + change.label:56}{cells}{'  SLOWER' if bad else ''}")
    if slower:
        raise click.ClickException(
            f"{slower} slower by more than {tolerance:.0%}, or no longer right"
        )


if __name__ == "__main__":
    main()
