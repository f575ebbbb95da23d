"""Files of the pages at ``/`` and ``/docs``: nothing in them is secret, they ask no other host."""

from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "page"
# Of paths that are shown without their file's name.
_NAMES = {".": "index.html", "docs": "docs.html"}
# Whoever has the token may try the page: its files are given to everybody.
OPEN = frozenset(["/", "/docs", *(f"/{path.name}" for path in FOLDER.iterdir())])
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    # Those of a newer version, not what a browser has kept.
    "Cache-Control": "no-cache",
}


class Page(StaticFiles):
    """The files, with the headers that keep their pages to this server."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """See StaticFiles."""
        answer = await super().get_response(_NAMES.get(path, path), scope)
        answer.headers.update(_HEADERS)
        return answer
