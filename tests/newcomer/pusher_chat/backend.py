"""A chat on Pusher Channels. Its users log in with /?user=ann."""

import asyncio
import os
import sys
from pathlib import Path

import pusher
from aiohttp import web

PAGE = Path("page.html")
channels = pusher.Pusher(
    app_id="1234567",
    key="a1b2c3d4e5f6a7b8c9d0",
    secret=os.environ["PUSHER_SECRET"],
    cluster="eu",
    ssl=True,
)


async def index(request: web.Request) -> web.FileResponse:
    response = web.FileResponse(PAGE)
    response.set_cookie("user", request.query["user"])
    return response


async def authorize(request: web.Request) -> web.Response:
    form, user = await request.post(), request.cookies.get("user")
    if user is None:
        raise web.HTTPForbidden
    about = {"user_id": user, "user_info": {"name": user.title()}}
    return web.json_response(channels.authenticate(form["channel_name"], form["socket_id"], about))


async def send(request: web.Request) -> web.Response:
    form, name = await request.post(), request.cookies["user"].title()
    message = {"name": name, "text": form["text"]}
    await asyncio.to_thread(channels.trigger, "presence-chat", "message", message, form["socket_id"])
    return web.Response(status=204)


async def announce(request: web.Request) -> web.Response:
    await asyncio.to_thread(channels.trigger, "news", "announcement", {"text": await request.text()})
    return web.Response(status=204)


app = web.Application()
app.add_routes(
    [
        web.get("/", index),
        web.post("/pusher/auth", authorize),
        web.post("/messages", send),
        web.post("/announcements", announce),
    ]
)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]))
