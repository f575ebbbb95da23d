"""The oracle on a GPU is checked itself: its float64 answers against the CPU's."""

from collections.abc import Callable

from exporter.errors import ExportError
from exporter.parity.answers import Answers
from exporter.parity.rules.metrics import UNBOUNDED, compare
from exporter.parity.truth.packs import Pack, parity_packs

# Both are float64, but sum in another order: a few thousand roundings of 1e-16.
LIMIT = 1e-12


def checked_pack() -> Pack:
    """Small, for CPUs take their time in float64, but with every token and masks."""
    return parity_packs()["every token"]


def check_against_cpu(run: Callable[[str], Answers], device: str) -> float:
    """Compares the oracle on ``device`` with the oracle on the CPU.

    Args:
        run: from a device to eager fair-esm's float64 answers to ``checked_pack``.
        device: where the oracle of a gate is to run.

    Returns:
        The worst relative L2 of all outputs, at most ``LIMIT``.

    Raises:
        ExportError: the device computes something else.
    """
    truth = run("cpu")
    found = run(device).tensors
    worst, place = 0.0, ""
    for name, expected in truth.tensors.items():
        try:
            error = compare(found[name], expected, truth.bounds(name)).relative_l2
        except ValueError:
            error = UNBOUNDED
        if error >= worst:
            worst, place = error, name
    if worst > LIMIT:
        raise ExportError(
            f"eager fair-esm in float64 on {device} is not the CPU's: relative L2 of {place} is "
            f"{worst:.1e}, expected at most {LIMIT:.0e}. Do not trust this card or its libraries; "
            "take device 'cpu'"
        )
    return worst
