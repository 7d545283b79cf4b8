"""python-socketio on aiohttp and uvloop: emit to a room.

    python -m benchmarks.peers.python_socketio_server FOLDER TEXT

The receiver answers no pings of Engine.IO, so there are none.
"""

import asyncio
import json
import os
import sys

import uvloop
from aiohttp import web

from benchmarks.servers.commands import answer, obey, run_passes

__all__: list[str] = []


async def serve(text: str) -> None:
    import socketio  # in FOLDER

    server = socketio.AsyncServer(async_mode="aiohttp", transports=["websocket"], ping_interval=3600)
    message = json.loads(text)

    @server.event  # type: ignore[untyped-decorator]
    async def connect(sid: str, environ: object) -> None:
        await server.enter_room(sid, "bench")

    async def one_pass(burst: int) -> None:
        for _ in range(burst):
            await server.emit("message", message, room="bench")

    async def passes(count: int, burst: int, gap_us: int) -> None:
        await run_passes(one_pass, count, burst, gap_us)

    application = web.Application()
    server.attach(application)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    answer(port=runner.addresses[0][1])
    await obey({"pass": passes})
    os._exit(0)  # do not wait for thousands of handlers to be cancelled


def main() -> None:
    folder, text = sys.argv[1:]
    sys.path.insert(0, folder)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(text))


if __name__ == "__main__":
    main()
