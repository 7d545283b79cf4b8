"""Calls of the echo service over a raw WebSocket."""

import json
from typing import Any

from tests.support.clients.raw_ws import (
    TEXT,
    RawClient,
    frame,
)


def echo(value: Any) -> bytes:
    return frame(TEXT, json.dumps({"service": "echo", "message": value}).encode())


async def assert_echoes(client: RawClient, value: Any = "still here") -> None:
    """The client is served; earlier messages are consumed."""
    await client.send(echo(value))
    assert await client.message() == {"service": "echo", "message": value}
