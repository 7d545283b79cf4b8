"""Calls over SockJS, and the values that came back."""

import json
from typing import Any

from tests.support.scenarios.sockjs_site import SockJSCaller, SockJSSite


def echo(*values: Any) -> str:
    return json.dumps([json.dumps({"service": "echo", "message": value}) for value in values])


def values_of(text: str) -> list[Any]:
    """Read the messages of array frames, a line each."""
    lines = [line for line in text.splitlines() if line[:1] == "a"]
    return [json.loads(message)["message"] for line in lines for message in json.loads(line[1:])]


async def send(client: SockJSCaller, *values: Any) -> None:
    assert await client.post("xhr_send", echo(*values)) == (204, "")


def connection_of(site: SockJSSite) -> Any:
    (connection,) = [connection for host in site.hosts for connection in host.node.connections]
    return connection
