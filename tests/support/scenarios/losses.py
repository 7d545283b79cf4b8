"""A node that misses publications: `losing`."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from snorky.gateway.node import Node
from tests.support.clients.any_protocol import DEADLINE_S

__all__ = ["losing"]


@asynccontextmanager
async def losing(node: Node, channel: str) -> AsyncIterator[None]:
    """Let the node drop what it receives, until it has dropped a publication of a channel of `pubsub`."""
    deliver, dropped = node.on_publications, asyncio.Event()

    def drop(batch: Mapping[str, Any]) -> None:
        if f"pubsub:{channel}" in batch:
            dropped.set()

    node.on_publications = drop  # type: ignore[method-assign]
    yield
    async with asyncio.timeout(DEADLINE_S):
        await dropped.wait()
    node.on_publications = deliver  # type: ignore[method-assign]
