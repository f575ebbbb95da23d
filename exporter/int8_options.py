"""The command line's options for int8."""

from typing import Any

import click

from exporter.errors import ExportError
from runtime.option_group import option_group

# Read by ``settings_of``.
int8_options = option_group(
    click.option(
        "--calibration",
        type=click.Path(),
        help="FASTA of proteins on which int8 looks for large channels.  [default: built-in ones]",
    ),
    click.option(
        "--int8-budget",
        type=click.FloatRange(min=0, min_open=True),
        help="Relative L2 of int8 on those proteins. Linears stay in float until it is met.  "
        "[default: 0.03]",
    ),
    click.option(
        "--int8-bits",
        type=click.Choice(["7", "8"]),
        help="Of weights. 7 are less exact, and faster where x86 has no VNNI.  [default: 8]",
    ),
)


def settings_of(
    targets: list[str], calibration: str | None, int8_budget: float | None, int8_bits: str | None
) -> dict[str, Any]:
    """What the format ``onnx-int8`` takes.

    Raises:
        ExportError: something was given for another target.
        InputError: the file of proteins cannot be read.
    """
    given = {"--calibration": calibration, "--int8-budget": int8_budget, "--int8-bits": int8_bits}
    named = [option for option, value in given.items() if value is not None]
    if named and "onnx-int8" not in targets:
        raise ExportError(f"{named[0]} is for --target onnx-int8, got --target {','.join(targets)}")
    settings: dict[str, Any] = {}
    if int8_budget is not None:
        settings["budget"] = int8_budget
    if int8_bits is not None:
        settings["bits"] = int(int8_bits)
    if calibration is not None:
        from exporter.own_proteins import calibration_of

        settings["calibration"] = calibration_of(calibration)
    return settings
