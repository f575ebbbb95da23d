"""The command line's options for records, the same wherever a command reads FASTA."""

from collections.abc import Callable
from typing import Literal, get_args

import click

from runtime.tokenizer import UNKNOWN_CHOICES

OnError = Literal["stop", "skip"]
ON_ERROR_CHOICES: tuple[str, ...] = get_args(OnError)

_OPTIONS = (
    click.option(
        "--on-error",
        default="stop",
        show_default=True,
        type=click.Choice(ON_ERROR_CHOICES),
        help="For a record that cannot be run. skip: leave it out and go on.",
    ),
    click.option(
        "--unknown",
        default="error",
        show_default=True,
        type=click.Choice(UNKNOWN_CHOICES),
        help="For characters outside the alphabet, such as J, * or lower case.",
    ),
    click.option("--upper", is_flag=True, help="Take lower case as upper case (soft-masked)."),
    click.option("--strip-stop", is_flag=True, help="Remove a single * at a sequence's end."),
)


def record_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds ``on_error``, ``unknown``, ``upper`` and ``strip_stop``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
