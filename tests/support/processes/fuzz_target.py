"""A gateway in its own process that reports its state: `python -m tests.support.processes.fuzz_target`.

Requests are lines on standard input, each answered with a line of JSON: `counts`, `state` (the counts, and values that
take longer to collect), `begin` (publish numbers to the channel "canary"), `end`.
"""

import asyncio
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import uvloop

from snorky.gateway.config.settings import Limits, Public
from snorky.gateway.connection.connection import Connection
from snorky.gateway.http.websocket.protocol import WebSocketProtocol
from snorky.gateway.logs import configure_logs
from snorky.gateway.protocol.ws_frames import FrameParser
from tests.support.scenarios.site import RunningSite, running_site

PUBLISH_EVERY_S = 0.005
LIMITS = Limits(request_header_timeout_s=1.0, messages_per_s=1e6, messages_burst=1_000_000, connections_per_ip=0)


def counts(site: RunningSite) -> dict[str, Any]:
    server = site.site._runner.server
    assert server is not None
    return {
        "connections": site.node.counts["connections"],
        "admitted": site.admitted[0],
        "http": len(server.connections),
    }


def state(site: RunningSite) -> dict[str, Any]:
    gc.collect()
    objects = gc.get_objects()
    closed = site.node.metrics.connections_closed.collect()
    codes = {sample.labels["code"] for metric in closed for sample in metric.samples}
    return {
        **counts(site),
        "ours": sum(isinstance(each, Connection | WebSocketProtocol | FrameParser) for each in objects),
        "objects": len(objects),
        "tasks": len(asyncio.all_tasks()),
        "fds": len(os.listdir("/proc/self/fd")),
        "rss": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "faults": [str(each) for each in site.faults],
        "errors": site.errors,
        "opened": site.sample("connections_opened_total", transport="websocket"),
        "codes": sorted(int(code) for code in codes if code.isdigit()),
    }


async def main() -> None:
    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), flush=True)

    async with running_site(
        limits=LIMITS, public=Public(compression=True, ping_interval_s=5.0), is_strict=False
    ) as site:
        site.echo.keeps = False
        answer({"port": site.addresses[0][1]})
        loop = asyncio.get_running_loop()
        published = 0
        publishing: asyncio.TimerHandle | None = None

        def publish_next() -> None:
            nonlocal published, publishing
            site.bring(b"%d" % published, "canary")
            published += 1
            publishing = loop.call_later(PUBLISH_EVERY_S, publish_next)

        while line := await loop.run_in_executor(None, sys.stdin.readline):
            if line.strip() == "begin":
                publish_next()
                answer({})
            elif line.strip() == "end":
                assert publishing is not None
                publishing.cancel()
                answer({"published": published})
            else:
                answer(counts(site) if line.strip() == "counts" else state(site))


if __name__ == "__main__":
    configure_logs(level="warning")  # to stderr: standard output has the answers
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
