"""The report's files beside an artifact's engines: JSON for machines, HTML for people."""

from pathlib import Path

from exporter.parity.report import html
from exporter.parity.report.schema import FILE_NAME, Report, encode


def write_report(report: Report, folder: Path) -> None:
    """Writes ``parity.json`` and ``parity.html``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_bytes(encode(report))
    (folder / html.FILE_NAME).write_text(html.render(report), encoding="utf-8")
