"""socketify: uWebSockets in C++, whose pub/sub is called from Python.

    python -m benchmarks.peers.socketify_server FOLDER TEXT

Runs socketify's libuv loop alone: its asyncio loop would poll that one all the time, which would be in the figures.
"""

import os
import select
import socket
import sys
from collections.abc import Callable

from benchmarks.servers.commands import answer

__all__: list[str] = []

LOOK_MS = 5  # how often stdin is looked at


def serve(text: str) -> None:
    from socketify import App, AppListenOptions, CompressOptions, OpCode  # in FOLDER

    app = App()
    loop = app.loop.uv_loop
    app.ws(
        "/*",
        {
            "compression": CompressOptions.DISABLED,
            "idle_timeout": 0,
            "send_pings_automatically": False,
            "open": lambda client: client.subscribe("bench"),
            "message": lambda client, message, opcode: None,
        },
    )
    timers = []  # the one that is running and the next: a timer without references is stopped

    def later(ms: int, call: Callable[..., None], argument: object) -> None:
        timers[:] = [*timers[-1:], loop.create_timer(ms, 0, call, argument)]

    def look(_: object) -> None:
        if not select.select([sys.stdin], [], [], 0)[0]:
            return later(LOOK_MS, look, None)
        line = os.read(0, 256)
        if not line:
            os._exit(0)
        passes, burst, gap_us = map(int, line.split()[1:])
        one_pass((passes, passes, burst, -(-gap_us // 1000)))

    def one_pass(job: tuple[int, int, int, int]) -> None:
        passes, left, burst, gap_ms = job
        if not left:
            answer(passes=passes)
            return look(None)
        for _ in range(burst):
            app.publish("bench", text, OpCode.TEXT)
        later(gap_ms, one_pass, (passes, left - 1, burst, gap_ms))

    with socket.socket() as probe:  # socketify does not tell which port the kernel chose
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app.listen(AppListenOptions(port=port, host="127.0.0.1"), lambda _: answer(port=port))
    look(None)
    loop.run()


def main() -> None:
    folder, text = sys.argv[1:]
    sys.path.insert(0, folder)
    serve(text)


if __name__ == "__main__":
    main()
