"""The service pubsub with rules of channels, and calls of it."""

from typing import Any

from snorky.gateway import ChannelRule, Service
from snorky.services.pubsub import PubSubService
from tests.support.fakes.memory_cluster import Resident

CHANNELS = [
    ChannelRule("kept:*", history=1000),
    ChannelRule("read-only:*", history=10, recovery=False),
    ChannelRule("room:*", history=1000, presence=True, join_leave=True),
    ChannelRule("quiet:*", presence=True),
    ChannelRule("news", allow_publish="nobody"),
    ChannelRule("keyless", client_keys=False),
]


def services() -> list[Service]:
    return [PubSubService(channels=CHANNELS)]


async def ask(client: Resident, command: str, channel: Any = "kept:a", **params: Any) -> Any:
    return await client.ask("pubsub", command, channel=channel, **params)


async def publish(client: Resident, *messages: Any, channel: Any = "kept:a") -> None:
    for message in messages:
        assert await ask(client, "publish", channel, message=message) is None


def texts(reply: Any) -> list[Any]:
    return [each["message"] for each in reply["messages"]]
