"""Options that several commands share, as one decorator."""

from collections.abc import Callable
from functools import reduce

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def option_group(*options: Decorator) -> Decorator:
    """Adds options of click to a command, which shows them in this order."""
    return lambda command: reduce(lambda decorated, add: add(decorated), reversed(options), command)
