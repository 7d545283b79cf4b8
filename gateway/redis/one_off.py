"""Publications of commands: by a connection that is made for them, each sent once and never again.

They go through the function that nodes load, which knows what channels keep; where it is not there, or not permitted,
as plain PUBLISH. Connections of a node do not pass here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from gateway.redis.names import channel_name
from gateway.redis.probe import reading
from gateway.redis.target import RedisTarget

__all__ = ["Receipt", "publish_all", "publish_once"]


@dataclass(slots=True)
class Receipt:
    """What became of publications. position: of the last one, "" if it is not kept. nodes: that heard it, if known."""

    count: int = 0
    position: str = ""
    nodes: int | None = None


async def publish_once(target: RedisTarget, prefix: str, key: str, payload: bytes) -> Receipt:
    """Publish once: whoever gets ConnectionError does not know whether it went through.

    key: of the channel, as `codec.channel_key` makes it. Raises ConnectionError, with a text for people.
    """
    name = channel_name(prefix, key)
    async with reading(target.of(name)) as client:
        if not await _has_function(client, name):
            return Receipt(1, nodes=int(await _publish(client, target, name, payload)))
        nodes = await _subscribers(client, target, name)
        position = await _call(client, name, payload)
        return Receipt(1, position.decode(), nodes)


async def publish_all(target: RedisTarget, prefix: str, key: str, batches: Iterable[Sequence[bytes]]) -> Receipt:
    """Publish many in their order, a round trip for each batch, never again.

    Raises ConnectionError: of the last batch it is not known.
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
    return client.execute_command("PUBLISH" if target.cluster is None else "SPUBLISH", name, payload)


def _call(client: Any, name: bytes, payload: bytes) -> Any:
    return client.execute_command("FCALL", "snorky_publish", 1, name, payload)


async def _has_function(client: Redis, name: bytes) -> bool:
    """Ask with a payload that it must refuse: it looks at the payload behind all else."""
    try:
        await _call(client, name, b"")
    except NoPermissionError:
        return False
    except ResponseError as error:
        return "the payload is no JSON" in str(error)
    return False


async def _subscribers(client: Redis, target: RedisTarget, name: bytes) -> int | None:
    try:
        numsub = client.pubsub_numsub if target.cluster is None else client.pubsub_shardnumsub
        answer: Any = await numsub(name)
    except ResponseError:  # not permitted
        return None
    return int(answer[0][1])
