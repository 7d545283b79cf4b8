"""What tests of subscription tokens do: make a token, subscribe with it, and publish on the channel."""

import time
from typing import Any

from snorky.gateway import History
from tests.support.fakes.memory_cluster import Resident, Town
from tests.support.scenarios.tokens import hmac_token

__all__ = ["is_granted", "publish", "received", "subscribe", "token"]

HISTORY = History(300.0, 10)


def token(channel: Any = "orders:7", identity: Any = "ann", *, within_s: float = 60.0, **claims: Any) -> str:
    return hmac_token(identity, channel=channel, exp=time.time() + within_s, **claims)


async def subscribe(client: Resident, channel: Any = "orders:7", **params: Any) -> Any:
    return await client.ask("pubsub", "subscribe", channel=channel, **params)


def is_granted(answer: Any) -> bool:
    return set(answer) == {"expiresInS"} and 0 <= answer["expiresInS"] <= 60


async def publish(nodes: Town, message: Any, channel: Any = "orders:7") -> None:
    await nodes.nodes[1].channels.publish_kept("pubsub", channel, message, HISTORY)


def received(client: Resident) -> list[Any]:
    return [each.get("message", each["type"]) for each in client.notifications]
