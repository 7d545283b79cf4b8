"""Publications by operator commands (`snorky publish`), over a connection of their own, without retries.

They use the function snorky_publish, which applies the channel rules; if it is not loaded or not permitted, plain
PUBLISH. Nodes do not use this module.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from snorky.gateway.redis.admin.inspect import reading
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.keys import channel_name

__all__ = ["Receipt", "publish_all", "publish_once"]


@dataclass(slots=True)
class Receipt:
    """The result of publishing. position: of the last publication, "" without history. nodes: subscribers, if known."""

    count: int = 0
    position: str = ""
    nodes: int | None = None


async def publish_once(target: RedisTarget, prefix: str, key: str, payload: bytes) -> Receipt:
    """Publish once, without a retry. key: of the channel, as `codec.channel_key` makes it.

    Raises ConnectionError, with a readable text: the publication may or may not have been delivered.
    """
    name = channel_name(prefix, key)
    async with reading(target.of(name)) as client:
        if not await _has_function(client, name):
            return Receipt(1, nodes=int(await _publish(client, target, name, payload)))
        nodes = await _subscribers(client, target, name)
        position = await _call(client, name, payload)
        return Receipt(1, position.decode(), nodes)


async def publish_all(target: RedisTarget, prefix: str, key: str, batches: Iterable[Sequence[bytes]]) -> Receipt:
    """Publish many in order, with one round trip per batch and without retries.

    Raises ConnectionError: the outcome of the last batch is unknown.
    """
    receipt, name = Receipt(), channel_name(prefix, key)
    async with reading(target.of(name)) as client:
        has_function = await _has_function(client, name)
        for batch in batches:
            pipeline = client.pipeline(transaction=False)
            for payload in batch:
                if has_function:
                    _call(pipeline, name, payload)
                else:
                    _publish(pipeline, target, name, payload)
            answers: list[Any] = await pipeline.execute()
            receipt.count += len(batch)
            if has_function and answers:
                receipt.position = answers[-1].decode()
    return receipt


def _publish(client: Any, target: RedisTarget, name: bytes, payload: bytes) -> Any:
    return client.execute_command("SPUBLISH" if target.is_cluster else "PUBLISH", name, payload)


def _call(client: Any, name: bytes, payload: bytes) -> Any:
    return client.execute_command("FCALL", "snorky_publish", 1, name, payload)


async def _has_function(client: Redis, name: bytes) -> bool:
    """True if snorky_publish can be called. Calls it with an invalid payload, which it checks after everything else."""
    try:
        await _call(client, name, b"")
    except NoPermissionError:
        return False
    except ResponseError as error:
        return "the payload is no JSON" in str(error)
    return False


async def _subscribers(client: Redis, target: RedisTarget, name: bytes) -> int | None:
    try:
        numsub = client.pubsub_shardnumsub if target.is_cluster else client.pubsub_numsub
        answer: Any = await numsub(name)
    except ResponseError:  # not permitted
        return None
    return int(answer[0][1])
