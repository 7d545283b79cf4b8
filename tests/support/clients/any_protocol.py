"""One client of each protocol and transport, with one way to use it: what all of them must do alike.

    async with opened("sse", site, "news") as client:
        assert await client.message() == {"title": "Hello"}

A client is subscribed when `opened` has returned. `ended` waits for its end, and returns the codes and reasons. The
clients are in `tests.support.clients.protocols`.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import aiohttp

from tests.support.clients.protocols.base import DEADLINE_S, AnyClient, Ended, Refused
from tests.support.clients.protocols.centrifuge import CentrifugeClient, CentrifugeProtobufClient
from tests.support.clients.protocols.plain import RawClient, SeveralClient, StreamClient, TextClient
from tests.support.clients.protocols.pusher import PusherChannelClient
from tests.support.clients.protocols.snorky import PackedClient, SnorkyClient, SockJSClient

__all__ = [
    "CENTRIFUGE",
    "DEADLINE_S",
    "MAY_PUBLISH",
    "MAY_RECOVER",
    "PROTOCOLS",
    "AnyClient",
    "Ended",
    "Refused",
    "opened",
]

CENTRIFUGE: Final = ("centrifuge", "centrifuge-protobuf")
PROTOCOLS: Final = ("json", "msgpack", "sockjs", "raw", "raw-text", "sse", "sse-several", *CENTRIFUGE, "pusher")
MAY_PUBLISH: Final = ("json", "msgpack", "sockjs", "raw", "raw-text", *CENTRIFUGE)
MAY_RECOVER: Final = ("json", "msgpack", "sockjs", "sse", "sse-several", *CENTRIFUGE)

_KINDS: Final[Mapping[str, type[AnyClient]]] = {
    "json": SnorkyClient,
    "msgpack": PackedClient,
    "sockjs": SockJSClient,
    "raw": RawClient,
    "raw-text": TextClient,
    "sse": StreamClient,
    "sse-several": SeveralClient,
    "centrifuge": CentrifugeClient,
    "centrifuge-protobuf": CentrifugeProtobufClient,
    "pusher": PusherChannelClient,
}


@asynccontextmanager
async def opened(
    kind: str, url: str, channel: str, *, since: str | None = None, token: str | None = None
) -> AsyncIterator[AnyClient]:
    """Open a client. url: of a node, "http://HOST:PORT". Raises Refused."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    timeout = aiohttp.ClientTimeout(total=None, connect=DEADLINE_S)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        client = _KINDS[kind](http, url, channel, since=since, headers=headers)
        await client.open()
        try:
            yield client
        finally:
            await client.close()
