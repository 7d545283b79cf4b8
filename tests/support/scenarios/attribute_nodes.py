"""Nodes for tests of `info`, `tags` and `chan_info` of Centrifuge clients, and their server API."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import aiohttp
import cent
import pytest

from tests.support.clients.centrifuge import CentrifugeClient, connected
from tests.support.clients.centrifuge_protobuf import connected_by_protobuf
from tests.support.scenarios.protocol_nodes import Nodes

__all__ = [
    "ANN",
    "ENV",
    "KEPT",
    "KEY",
    "MIXED",
    "PLAIN",
    "ROLE",
    "TAGS",
    "Connect",
    "backend_api",
    "called",
    "each_form",
]

KEY: Final = "a-key-of-a-backend-0123456789abcdef"
KEPT: Final = "kept.room"
PLAIN: Final = "plain.room"
MIXED: Final = "presence-room"  # a name that clients of Pusher can have
RULES = [
    {"match": "kept.*", "history": 1000, "allow_subscribe": "anyone", "allow_publish": "anyone"},
    {"match": "plain.*", "allow_subscribe": "anyone", "allow_publish": "anyone"},
    {"match": "told", "history": 10, "presence": True, "join_leave": True, "allow_subscribe": "token"},
    {"match": MIXED, "presence": True, "join_leave": True, "allow_subscribe": "token"},
]
ENV = {
    "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(RULES),
    "SNORKY_BACKEND__CONTROL__CLASS": "snorky.services.control:ControlBackend",
    "SNORKY_BACKEND__PUBSUB_BACKEND__CLASS": "snorky.services.pubsub:PubSubBackend",
    "SNORKY_PRIVATE__API_KEY": KEY,
    "SNORKY_LIMITS__MESSAGES_PER_S": "1000",
}
ANN: Final = {"name": "Ann € {", "avatar": "/a b.png", "n": [1, None]}
ROLE: Final = {"role": "admin €"}
TAGS: Final = {"kind": "news €", "a b": "{ x }"}

Connect = Callable[[str, str], AbstractAsyncContextManager[CentrifugeClient]]
each_form = pytest.mark.parametrize("connect", [connected, connected_by_protobuf], ids=["json", "protobuf"])


@asynccontextmanager
async def backend_api(nodes: Nodes) -> AsyncIterator[cent.AsyncClient]:
    """Use the first node's server API by its own client library."""
    client = cent.AsyncClient(f"{nodes.gateways[0].private_urls[0]}/api", api_key=KEY)
    try:
        yield client
    finally:
        await client.close()


async def called(nodes: Nodes, method: str, **params: Any) -> Any:
    """Call the server API by hand; returns the whole reply."""
    address = f"{nodes.gateways[0].private_urls[0]}/api/{method}"
    async with (
        aiohttp.ClientSession() as http,
        http.post(address, json=params, headers={"X-API-Key": KEY}) as response,
    ):
        return await response.json()
