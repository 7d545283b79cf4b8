"""PusherBackend: the backend of a Pusher app. It signs subscriptions and the sign-in of users, and calls the HTTP API.

async with PusherBackend() as backend:
    ... backend.url        # /channel and /user are the endpoints of pusher-js; / is a page with its script
    ... backend.questions  # what clients asked: their forms
    await backend.publish("http://127.0.0.1:8080", "number", 7, ["orders"])

It refuses channels with `forbidden` in their name, and signs those with `forged` wrongly. Members of a channel with
`by-sign-in` in its name are the users who signed in. Users have the watchlists in `watchlists`.
"""

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlencode

import aiohttp
from aiohttp import web

__all__ = ["APP", "ENV", "KEY", "MASTER_KEY", "SECRET", "PusherBackend"]

APP: Final = "shop"
KEY: Final = "shop-key"
SECRET: Final = hashlib.sha256(b"the secret of the app").hexdigest()
MASTER_KEY: Final = hashlib.sha256(b"the key of encrypted channels").digest()
ENV: Final = {  # settings of nodes
    f"SNORKY_PUBLIC__PUSHER_APPS__{APP.upper()}__KEY": KEY,
    f"SNORKY_PUBLIC__PUSHER_APPS__{APP.upper()}__SECRET": SECRET,
}


def _sign(text: str) -> str:
    return hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()


class PusherBackend:
    """Listens on loopback. page: what `/` answers. script: the file behind `/pusher.js`."""

    def __init__(self, *, page: str = "", script: Path | None = None) -> None:
        self.page = page
        self.questions: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []  # of the questions
        self.watchlists: dict[str, Any] = {}  # by users
        self.url = ""
        self._script = script
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes(
            [
                web.post("/channel", self._authorize),
                web.post("/user", self._authenticate),
                web.get("/", self._get_page),
                web.get("/pusher.js", self._get_script),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None and self._session is not None
        await self._session.close()
        await self._runner.cleanup()

    # -- the HTTP API ----------------------------------------------------------------------------------------------

    async def publish(self, gateway: str, event: str, data: Any, channels: list[str], **others: Any) -> int:
        """Publish an event; returns the HTTP status, 0 without an answer. others: further fields of the request."""
        assert self._session is not None
        path = f"/apps/{APP}/events"
        body = json.dumps({"name": event, "data": json.dumps(data), "channels": channels, **others}).encode()
        query = {
            "auth_key": KEY,
            "auth_timestamp": str(int(time.time())),
            "auth_version": "1.0",
            "body_md5": hashlib.md5(body, usedforsecurity=False).hexdigest(),
        }
        signature = _sign(f"POST\n{path}\n" + "&".join(f"{name}={query[name]}" for name in sorted(query)))
        url = f"{gateway}{path}?{urlencode(query | {'auth_signature': signature})}"
        try:
            async with self._session.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
                await response.read()
                return response.status
        except (aiohttp.ClientError, TimeoutError):
            return 0

    # -- endpoints of clients --------------------------------------------------------------------------------------

    async def _form(self, request: web.Request) -> dict[str, str]:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.questions.append(form)
        self.headers.append(dict(request.headers))
        return form

    async def _authorize(self, request: web.Request) -> web.Response:
        form = await self._form(request)
        socket_id, channel, user = form["socket_id"], form["channel_name"], form.get("user", "")
        if "forbidden" in channel:
            return web.json_response({"error": "no"}, status=403)
        if "forged" in channel:
            return web.json_response({"auth": f"{KEY}:{_sign('something else')}"})
        answer, signed = {}, f"{socket_id}:{channel}"
        if channel.startswith("presence-") and "by-sign-in" not in channel:
            answer["channel_data"] = json.dumps({"user_id": user, "user_info": {"name": user.title()}})
            signed = f"{signed}:{answer['channel_data']}"
        if channel.startswith("private-encrypted-"):
            secret = hashlib.sha256(channel.encode() + MASTER_KEY).digest()
            answer["shared_secret"] = base64.b64encode(secret).decode()
        return web.json_response({**answer, "auth": f"{KEY}:{_sign(signed)}"})

    async def _authenticate(self, request: web.Request) -> web.Response:
        form = await self._form(request)
        if not form["user"]:
            return web.json_response({"error": "no"}, status=403)
        watchlist = {"watchlist": self.watchlists[form["user"]]} if form["user"] in self.watchlists else {}
        user = json.dumps({"id": form["user"], "user_info": {"name": form["user"].title()}, **watchlist})
        signature = _sign(f"{form['socket_id']}::user::{user}")
        return web.json_response({"auth": f"{KEY}:{signature}", "user_data": user})

    async def _get_page(self, _request: web.Request) -> web.Response:
        return web.Response(text=self.page, content_type="text/html")

    async def _get_script(self, _request: web.Request) -> web.FileResponse:
        assert self._script is not None
        return web.FileResponse(self._script)
