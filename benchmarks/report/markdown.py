"""Lines of tables in Markdown."""

from collections.abc import Sequence


def head(names: Sequence[str]) -> list[str]:
    """The names of the columns, and the line below them."""
    return [row(names), "|" + "---|" * len(names)]


def row(cells: Sequence[object]) -> str:
    """A line of a table."""
    return "".join("| " if cell == "" else f"| {cell} " for cell in cells) + "|"
