"""Options of commands that prove: how far, with which random packs, on which device."""

import datetime

import click

from exporter.parity.truth.packs import LONGEST

device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Where engines run: auto takes a GPU where an engine's library sees one. With cuda, eager "
    "fair-esm runs there too.",
)
longest_option = click.option(
    "--longest",
    default=LONGEST,
    show_default=True,
    type=click.IntRange(min=LONGEST),
    help="Tokens of the longest protein to compare; time grows with its square.",
)


def _seed(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """A number, or that of the date in UTC."""
    if value == "today":
        return int(f"{datetime.datetime.now(datetime.UTC):%Y%m%d}")
    if not value.isdecimal():
        raise click.BadParameter(f"a whole number or 'today', got {value!r}")
    return int(value)


seed_option = click.option(
    "--seed",
    default="0",
    show_default=True,
    callback=_seed,
    help="Of the random packs: a number, or 'today' for that of the date.",
)
