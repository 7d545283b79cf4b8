"""Draining: disconnects a node's clients one after another, so that they do not reach other nodes all at once.

Each connection is drained at a random moment within the grace period: first it gets the notice `moving`, on which a
client opens its next connection; then, after enough time for that, it is closed with 1001.
"""

import asyncio
import random
from collections import deque
from typing import Final

import structlog

from snorky.gateway.connection.connection import Connection
from snorky.gateway.errors import CloseCode
from snorky.gateway.node import Node

__all__ = ["drain"]

NOTICE_MAX_S: Final = 2.0  # between `moving` and 1001: a handshake and a subscribe take well under 1 s
PACE_S: Final = 0.05  # interval of checking which are next
GONE_TIMEOUT_S: Final = 2.0  # for the peers' close frames; then the wheel aborts the connections

_log = structlog.get_logger("snorky.drain")


async def drain(node: Node, grace_s: float) -> None:
    """Disconnect all clients within grace_s seconds; returns when all have gone, or shortly afterwards.

    From the beginning, new handshakes are refused and `/readyz` returns 503.
    """
    node.begin_drain()
    loop = asyncio.get_running_loop()
    notice_s = min(NOTICE_MAX_S, grace_s / 4)
    connections = list(node.connections)
    # uniformly random moments, sorted: no gaps and no bursts
    turns = sorted(random.uniform(0, grace_s - notice_s) for _ in connections)  # noqa: S311 - no secret
    random.shuffle(connections)
    _log.info("draining", connections=len(connections), grace_s=grace_s)
    moving = {"service": "gateway", "message": {"type": "moving", "graceMs": round(notice_s * 1000)}}
    started_s = loop.time()
    waiting = deque(zip(turns, connections, strict=True))
    noticed: deque[tuple[float, Connection]] = deque()  # with the time of the notice, oldest first
    while waiting or noticed:
        now_s = loop.time()
        while waiting and waiting[0][0] <= now_s - started_s:
            connection = waiting.popleft()[1]
            if not connection.is_closed:
                connection.send(moving)
                noticed.append((now_s, connection))
        while noticed and noticed[0][0] <= now_s - notice_s:
            noticed.popleft()[1].close(CloseCode.GOING_AWAY, "Going away")
        if waiting or noticed:
            await asyncio.sleep(PACE_S)
    deadline_s = loop.time() + GONE_TIMEOUT_S
    while any(node.connections) and loop.time() < deadline_s:  # noqa: ASYNC110 - once, at the end of a process
        await asyncio.sleep(PACE_S)
