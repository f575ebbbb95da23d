"""Shows a run again from its JSON: the table, and docs/performance.md with its plots."""

from pathlib import Path

import click

from benchmarks.report.document import write_document
from benchmarks.report.terminal import table
from benchmarks.results import read

DOCS = Path(__file__).parents[2] / "docs"


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(results: Path) -> None:
    """Print RESULTS (benchmarks/results/PLAN.json) and write docs/performance.md."""
    run = read(results)
    click.echo(table(run))
    write_document(run, DOCS)


if __name__ == "__main__":
    main()
