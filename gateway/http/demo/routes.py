"""Serves the demo page and the JavaScript client that it runs, as static files."""

from pathlib import Path
from typing import Final

from aiohttp import web

from snorky.gateway.errors import ConfigurationError

__all__ = ["demo_routes"]

_PAGE: Final = Path(__file__).parent / "page"
# an installed package has the client beside this folder; a checkout has it in clients/js/src
_CLIENTS: Final = (
    Path(__file__).parents[1] / "browser",
    Path(__file__).resolve().parents[3] / "clients" / "js" / "src",
)


def demo_routes() -> list[web.AbstractRouteDef]:
    """Make the routes `/`, `/demo/...` and `/client/...`. Raises ConfigurationError: the files are missing."""
    client = next((path for path in _CLIENTS if (path / "snorky.js").is_file()), None)
    if client is None:
        raise ConfigurationError("the demo page needs clients/js/src, which this installation lacks: install it again")

    async def page(_request: web.Request) -> web.FileResponse:
        return web.FileResponse(_PAGE / "index.html")

    async def module(request: web.Request) -> web.FileResponse:
        # only the modules themselves, not other files in their folder
        path = client / request.match_info["name"]
        if not path.is_file():
            raise web.HTTPNotFound
        return web.FileResponse(path, headers={"Cache-Control": "no-cache"})

    return [web.get("/", page), web.static("/demo", _PAGE), web.get(r"/client/{name:([a-z]+/)?[a-z]+\.js}", module)]
