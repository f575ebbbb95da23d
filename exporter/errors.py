"""Errors a user of the exporter can reach; the command line prints them as one line."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.parity.report import Report


class ExportError(Exception):
    """Root of the exporter's errors."""


class CheckpointError(ExportError):
    """Weights that are missing, damaged, or not ESM-2's."""


class ParityError(ExportError):
    """A built engine differs from eager fair-esm by more than its budget; nothing is published.

    Attributes:
        report: of all engines that were judged, or None where none was.
    """

    def __init__(self, message: str, report: "Report | None" = None):
        super().__init__(message)
        self.report = report
