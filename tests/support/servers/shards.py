"""Shared by tests of a Cluster's shards: keys that lie on one of them, and RedisHistory on them.

async with keepers_of(lab.url) as (keeper,): await keeper.publish(key_on(2), b"1", HOUR)
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis import RedisBackend, RedisHistory
from snorky.gateway.redis.cluster.slots import SLOTS, slot_of
from snorky.gateway.redis.keys import channel_name
from tests.support.fakes.brokers import PREFIX

__all__ = ["RULES", "keepers_of", "key_on", "shard_of"]

RULES = Rules([ChannelRule("*", history=1000)])


def shard_of(name: bytes | str, primaries: int = 3) -> int:
    """Return the primary that has a key, by the initial slot map."""
    return slot_of(name if isinstance(name, bytes) else name.encode()) * primaries // SLOTS


def key_on(at: int, service: str = "pubsub", spell: Callable[[str, str], bytes] = channel_name) -> str:
    """Find a key that lies on a primary. spell: which of its Redis keys decides."""
    return next(key for n in range(1000) if shard_of(spell(PREFIX, key := f"{service}:{n}")) == at)


@asynccontextmanager
async def keepers_of(
    url: str, count: int = 1, *, prefix: str = PREFIX, rules: Rules = RULES, look_s: float = 0.2
) -> AsyncIterator[list[Any]]:
    """Run the nodes' history stores. look_s: between two checks of the library."""
    async with AsyncExitStack() as stack:
        keepers: list[Any] = []
        for number in range(count):
            topology = RedisBackend.of(url, prefix=prefix, node_id=f"node-{number}", metrics=Metrics())
            topology.history_store.set_rules("pubsub", rules)
            if isinstance(topology.history_store, RedisHistory):
                topology.history_store.functions._look_s = look_s
            await topology.history_store.start()
            stack.push_async_callback(topology.history_store.stop)
            keepers.append(topology.history_store)
        yield keepers
