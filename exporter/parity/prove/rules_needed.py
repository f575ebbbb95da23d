"""What the gate would accept without one of its rules, from reports of planted faults.

``python -m exporter.parity.prove.rules_needed parity.json...`` prints a table. A fault that one
rule alone rejects slips through where that rule is switched off. Rules that no fault needs are
listed.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import click

from exporter.parity.report.schema import Report, read


def accepted_without(reports: Iterable[Report]) -> dict[str, list[str]]:
    """For each rule of the reports the faults that it alone rejects."""
    found: dict[str, list[str]] = {}
    for report in reports:
        for verdict in report.engines:
            for check in verdict.checks:
                found.setdefault(check.name, [])
        for fault in report.faults:
            if len(fault.rules) == 1 and fault.outcome == "rejected":
                found.setdefault(fault.rules[0], []).append(
                    f"{fault.fault} ({fault.engine}, {report.dtype})"
                )
    return found


def main() -> None:
    """Prints a table in Markdown."""
    click.echo("| rule | faults that it alone rejects |")
    click.echo("|---|---|")
    for rule, faults in accepted_without(map(read, map(Path, sys.argv[1:]))).items():
        shown = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
        click.echo(f"| {rule} | {shown or 'none'} |")


if __name__ == "__main__":
    main()
