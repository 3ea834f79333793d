"""The page at /: its files, held in memory and sent under a policy that lets it load from nowhere else."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Route]:
    """/ and every file of the page under /page/, by its name; there is no path to walk."""
    folder = files(__package__) / "page"
    return [
        _route("/" if file.name == "index.html" else f"/page/{file.name}", file.read_bytes(), file.name)
        for file in sorted(folder.iterdir(), key=lambda each: each.name)
    ]


def _route(path: str, content: bytes, name: str) -> Route:
    kind = TYPES["." + name.rpartition(".")[2]]

    async def send(request: Request) -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return Route(path, send, methods=["GET"])
