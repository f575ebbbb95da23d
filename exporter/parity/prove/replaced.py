"""Another function in a function's place, for faults."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from exporter.errors import ExportError
from exporter.model import packed_forward
from exporter.model.packed_forward import PackedESM2


@contextmanager
def replaced(owner: Any, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """A function in whose place another is called; one that is never called would prove nothing."""
    calls = 0

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return replacement(*arguments, **options)

    with patch.object(owner, name, counting):
        yield
    if not calls:
        raise ExportError(f"a planted fault was never reached: nothing calls {name}")


def patched(name: str, replacement: Callable[..., Any]) -> Callable[[PackedESM2], Any]:
    """A function of ``packed_forward`` replaced by another."""
    return lambda packed: replaced(packed_forward, name, replacement)
