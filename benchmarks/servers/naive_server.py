"""A typical first server: aiohttp, a list of WebSocketResponse, and a loop of send_str.

    python -m benchmarks.servers.naive_server {each|once} {asyncio|uvloop}

each: json.dumps for every client; once: one string for all. Commands: `pass PASSES BURST GAP_US`, `stat`.
"""

import asyncio
import json
import os
import sys

import uvloop
from aiohttp import web

from benchmarks.servers.commands import answer, obey, run_passes
from benchmarks.support.message import PATH, envelope

__all__: list[str] = []


async def serve(is_encoded_once: bool) -> None:
    clients: list[web.WebSocketResponse] = []

    async def connect(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        clients.append(socket)
        try:
            async for message in socket:
                if message.type is web.WSMsgType.TEXT:  # a call is answered, as the gateway does
                    call = json.loads(message.data)["message"]
                    reply = {"type": "response", "callId": call["callId"], "data": None}
                    await socket.send_str(json.dumps({"service": "pubsub", "message": reply}))
        finally:
            clients.remove(socket)
        return socket

    async def one_pass(burst: int) -> None:
        message = envelope()
        for _ in range(burst):
            if is_encoded_once:
                text = json.dumps(message)
                for socket in clients:
                    await socket.send_str(text)
            else:
                for socket in clients:
                    await socket.send_str(json.dumps(message))

    async def stat() -> None:
        answer(connections=len(clients))

    application = web.Application()
    application.router.add_get(PATH, connect)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    answer(port=runner.addresses[0][1])

    async def passes(count: int, burst: int, gap_us: int) -> None:
        await run_passes(one_pass, count, burst, gap_us)

    await obey({"pass": passes, "stat": stat})


def main() -> None:
    encode, loop = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(serve(encode == "once"))
        os._exit(0)  # do not wait for thousands of handlers to be cancelled


if __name__ == "__main__":
    main()
