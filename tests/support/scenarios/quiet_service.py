"""A service that does nothing, and its subscribers."""

import asyncio
from typing import Any

from snorky.gateway import (
    PAYLOAD,
    Connection,
    Service,
)
from tests.support.fakes.fake_wire import House


def bare(channel: Any) -> Any:
    """Shape a notification: only the payload."""
    return PAYLOAD


class Quiet(Service):
    def __init__(self, name: str = "quiet") -> None:
        super().__init__(name)
        self.heard: list[tuple[str, Connection]] = []

    def on_message(self, connection: Connection, message: Any) -> None:
        return None

    def on_connect(self, connection: Connection) -> None:
        self.heard.append(("connect", connection))

    def on_disconnect(self, connection: Connection) -> None:
        self.heard.append(("disconnect", connection))


def subscribe(built: House, connection: Connection, channel: Any = "news") -> "asyncio.Task[None]":
    return asyncio.ensure_future(built.node.channels.subscribe(connection, "quiet", channel, bare))
