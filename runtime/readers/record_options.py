"""The command line's options for records, the same wherever a command reads FASTA."""

from typing import Literal, get_args

import click

from runtime.option_group import option_group
from runtime.readers.records import LONG_CHOICES
from runtime.tokenizer import UNKNOWN_CHOICES

OnError = Literal["stop", "skip"]
ON_ERROR_CHOICES: tuple[str, ...] = get_args(OnError)

record_options = option_group(
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

length_options = option_group(
    click.option(
        "--max-length",
        type=click.IntRange(min=1),
        help="Residues of the longest protein. ESM-2 was trained on 1,022.  [default: no limit]",
    ),
    click.option(
        "--long",
        default="error",
        show_default=True,
        type=click.Choice(LONG_CHOICES),
        help="For longer ones. skip: leave them out and go on. truncate: run their first residues. "
        "window: run windows that overlap by a quarter, and average.",
    ),
)
