"""Errors a user of the exporter can reach; the command line prints them as one line."""


class ExportError(Exception):
    """Root of the exporter's errors."""


class CheckpointError(ExportError):
    """Weights that are missing, damaged, or not ESM-2's."""


class ReadOtherwiseError(CheckpointError):
    """The loader of a checkpoint's own format reads other weights from it."""
