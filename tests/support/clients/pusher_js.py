"""The real pusher-js and Laravel Echo of npm, in Node: some clients in one process, which reports their events."""

import base64
from contextlib import AbstractAsyncContextManager
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from tests.support.clients.js_process import JSProcess, running_js
from tests.support.processes.fleet import Fleet
from tests.support.processes.tools import ROOT
from tests.support.servers.pusher_backend import APP, KEY, MASTER_KEY, SECRET, PusherBackend

__all__ = ["FOLDER", "SCRIPT", "gateway_of", "laravel_echo", "needs_pusher_js", "pusher_js"]

FOLDER: Final = ROOT / "tests" / "pusher_js"
SCRIPT: Final = FOLDER / "node_modules" / "pusher-js" / "dist" / "web" / "pusher.js"  # for pages

needs_pusher_js = pytest.mark.skipif(
    not (FOLDER / "node_modules" / "pusher-js").exists(),
    reason="needs pusher-js: npm --prefix tests/pusher_js ci",
)


def gateway_of(fleet: Fleet) -> str:
    """Return the URL of a fleet for HTTP."""
    return fleet.url.removesuffix("/ws").replace("ws://", "http://")


def _where(gateway: str, backend: PusherBackend) -> dict[str, Any]:
    parts = urlsplit(gateway)
    return {"host": parts.hostname, "port": parts.port, "key": KEY, "auth": backend.url}


def pusher_js(
    gateway: str, backend: PusherBackend, *, count: int = 1, **settings: Any
) -> AbstractAsyncContextManager[JSProcess]:
    """Run clients of pusher-js. gateway: a URL. settings: see clients.js."""
    app = {"app": APP, "secret": SECRET, "masterKey": base64.b64encode(MASTER_KEY).decode()}
    return running_js(FOLDER, "clients.js", **(_where(gateway, backend) | app | {"count": count} | settings))


def laravel_echo(gateway: str, backend: PusherBackend, broadcaster: str) -> AbstractAsyncContextManager[JSProcess]:
    """Run Laravel Echo. broadcaster: "pusher" or "reverb"."""
    return running_js(FOLDER, "echo.mjs", **_where(gateway, backend), broadcaster=broadcaster)
