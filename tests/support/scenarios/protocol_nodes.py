"""Nodes in this process on a real server, for tests of every protocol: `Nodes`, their rules, and what clients need."""

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from snorky.client.aio import Publisher
from snorky.client.tokens import Signer
from snorky.gateway.config.settings import load
from snorky.gateway.runtime.gateway import Gateway
from snorky.services.pubsub import PubSubService
from snorky.services.rpc import Request
from tests.support.clients.any_protocol import DEADLINE_S, AnyClient
from tests.support.clients.pusher import KEY
from tests.support.clients.pusher import SECRET as APP_SECRET
from tests.support.processes.tools import eventually
from tests.support.scenarios.tokens import SECRET

__all__ = ["CHANNEL", "NEWS", "Hesitating", "Nodes", "subscriptions_of", "token_of", "until_heard"]

RULES = [
    {"match": "kept:*", "history": 1000, "allow_subscribe": "anyone", "allow_publish": "anyone"},
    {"match": "kept.*", "history": 1000, "allow_subscribe": "anyone", "allow_publish": "anyone"},
    {"match": "own:{identity}", "history": 10, "allow_subscribe": "owner", "allow_publish": "owner"},
    {"match": "own.{identity}", "history": 10, "allow_subscribe": "owner", "allow_publish": "owner"},
    {"match": "readonly", "allow_subscribe": "anyone", "allow_publish": "nobody"},
    {"match": "full", "allow_subscribe": "anyone", "subscribers_max": 1},
    {"match": "closed", "allow_subscribe": "nobody", "allow_publish": "nobody"},
    {"match": "*", "allow_subscribe": "anyone", "allow_publish": "anyone"},
]
ENV = {
    "SNORKY_PUBLIC__PORT": "0",
    "SNORKY_PRIVATE__PORT": "0",
    "SNORKY_PUBLIC__DRAIN_GRACE_S": "1",
    "SNORKY_PUBLIC__PUSHER_APPS__SHOP__KEY": KEY,
    "SNORKY_PUBLIC__PUSHER_APPS__SHOP__SECRET": APP_SECRET,
    "SNORKY_AUTH__HMAC_SECRET": SECRET,
    "SNORKY_SERVICES__AUTH__CLASS": "snorky.services.auth:AuthService",
    "SNORKY_SERVICES__PUBSUB__CLASS": "snorky.services.pubsub:PubSubService",
    "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(RULES),
}
CHANNEL: Final = "kept:news"
NEWS: Final = "kept.news"  # likewise, with a name that Pusher's clients can have


class Hesitating(PubSubService):
    """Never decides who may subscribe."""

    async def can_subscribe(self, request: Request, channel: Any) -> bool:
        await asyncio.Event().wait()
        return True


@dataclass
class Nodes:
    """Nodes on one Redis, started as tests ask for them."""

    redis_url: str
    stack: AsyncExitStack
    gateways: list[Gateway] = field(default_factory=list)

    async def start(self, **env: str) -> str:
        """Start a node; returns the URL of its public port."""
        settings = load(None, {**ENV, "SNORKY_REDIS_URL": self.redis_url, **env})
        gateway = await self.stack.enter_async_context(Gateway(settings))
        await gateway.until_ready(DEADLINE_S)
        self.gateways.append(gateway)
        return gateway.public_urls[0]

    async def until_subscribed(self, count: int) -> None:
        """Wait until the nodes together have this many subscriptions."""

        async def is_so() -> bool:
            return sum(each.node.counts["subscriptions"] for each in self.gateways) == count

        await eventually(is_so, within_s=DEADLINE_S, what=f"{count} subscriptions")


def token_of(identity: str) -> str:
    """Return a valid token."""
    return Signer(hmac_secret=SECRET).connection_token(identity)


async def until_heard(client: AnyClient, publisher: Publisher) -> None:
    """Wait until a client receives publications: a plain WebSocket is not told when it is subscribed."""
    heard = asyncio.create_task(client.message())
    while not heard.done():
        await publisher.publish(client.channel, "not yet")
        await asyncio.wait((heard,), timeout=0.1)
    await publisher.publish(client.channel, "now")
    while await client.message() != "now":
        pass


def subscriptions_of(kind: str) -> int:
    """Return how many subscriptions a client of a protocol has."""
    return 2 if kind == "sse-several" else 1
