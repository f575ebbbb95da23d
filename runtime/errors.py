"""Errors a user of the runtime can reach. Each message: what failed, expected, got, what to do."""


class Esm2Error(Exception):
    """Root of the runtime's errors; the command line prints them as one line."""


class ArtifactError(Esm2Error):
    """An artifact is missing, damaged, or of another schema version."""


class EngineError(Esm2Error):
    """An engine cannot be loaded or cannot run this batch on this machine."""


class UnsupportedError(EngineError):
    """The engine is whole, but this machine or installation cannot run it."""


class InputError(Esm2Error, ValueError):
    """Sequences, files or options that cannot be used as given."""


class NonFiniteError(Esm2Error, ArithmeticError):
    """An engine returned NaN or Inf; the message names the proteins."""


class OutputError(Esm2Error, OSError):
    """A file cannot be written; the message names the one that was asked for."""


class OutOfMemoryError(Esm2Error, MemoryError):
    """Memory ran out; the message says what was finished and where it is."""


def cause(error: Exception) -> str:
    """The line of a library's message that says what happened; TorchScript traces come before."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    telling = [line for line in lines if "Error: " in line or "error: " in line]
    return (telling or lines)[0].strip()
