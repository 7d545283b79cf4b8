"""A chat on Centrifugo. Its users log in with /?user=ann."""

import asyncio
import os
import sys
import time
from pathlib import Path

import jwt
from aiohttp import web
from cent import Client, PresenceRequest, PublishRequest

PAGE = Path("page.html")
centrifugo = Client("http://centrifugo:8000/api", api_key=os.environ["CENTRIFUGO_API_KEY"])


async def index(request: web.Request) -> web.FileResponse:
    response = web.FileResponse(PAGE)
    response.set_cookie("user", request.query["user"])
    return response


async def token(request: web.Request) -> web.Response:
    claims = {"sub": request.cookies["user"], "exp": int(time.time()) + 300}
    return web.Response(text=jwt.encode(claims, os.environ["CENTRIFUGO_TOKEN_SECRET"], algorithm="HS256"))


async def notify(request: web.Request) -> web.Response:
    channel, notice = f"#{request.match_info['user']}", {"text": await request.text()}
    await asyncio.to_thread(centrifugo.publish, PublishRequest(channel=channel, data=notice))
    return web.Response(status=204)


async def say(request: web.Request) -> web.Response:
    message = {"user": "the house", "text": await request.text()}
    await asyncio.to_thread(centrifugo.publish, PublishRequest(channel="chat:lobby", data=message))
    return web.Response(status=204)


async def present(_request: web.Request) -> web.Response:
    result = await asyncio.to_thread(centrifugo.presence, PresenceRequest(channel="chat:lobby"))
    return web.json_response(sorted({client.user for client in result.presence.values()}))


app = web.Application()
app.add_routes(
    [
        web.get("/", index),
        web.get("/token", token),
        web.post("/notices/{user}", notify),
        web.post("/messages", say),
        web.get("/present", present),
    ]
)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]))
