"""What commands print: as it is into files and pipes, wrapped between words on a terminal."""

import os
import re
import shutil
import sys
import textwrap

import click

# A name with its value behind at least two spaces: what does not fit continues below the value.
_NAMED = re.compile(r" *\S.*? {2,}(?=\S)")
# Narrower, or less of the width left beside a name, and a column of words is worse than a cut.
LEAST = 30


def say(text: str, *, err: bool = False, fg: str | None = None, bold: bool | None = None) -> None:
    """Prints lines.

    Args:
        text: lines; those of a table, or with a path to copy, are not changed outside terminals.
        err: to stderr.
        fg: colour, on a terminal and without ``NO_COLOR`` (https://no-color.org).
        bold: likewise.
    """
    if (sys.stderr if err else sys.stdout).isatty():
        # One column less: a full line would be followed by an empty one on some terminals.
        text = wrapped(text, shutil.get_terminal_size().columns - 1)
    if (fg or bold) and not os.environ.get("NO_COLOR"):
        text = click.style(text, fg=fg, bold=bold)
    click.echo(text, err=err)


def tell(text: str) -> None:
    """Says on stderr what goes on; stdout is for results."""
    say(text, err=True)


def warn(text: str) -> None:
    """Says on stderr what is odd."""
    say(f"warning: {text}", err=True, fg="yellow")


def wrapped(text: str, width: int) -> str:
    """``text`` in lines of at most ``width`` characters, but for words that are longer."""
    return "\n".join(part for line in text.split("\n") for part in _wrapped(line, width))


def _wrapped(line: str, width: int) -> list[str]:
    if len(line) <= width or width < LEAST:
        return [line]
    named = _NAMED.match(line)
    indent = len(line) - len(line.lstrip()) + 2
    if named and width - named.end() >= LEAST:
        indent = named.end()
    return textwrap.wrap(
        line, width, subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
