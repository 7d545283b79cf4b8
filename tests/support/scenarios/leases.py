"""Nodes with leases, the entries and names that they own, and the notices published about these."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from snorky.gateway.contracts.directory import Owner
from snorky.gateway.redis import Timings
from tests.support.fakes.directories import FakeNode, RedisTestCluster

ROOM = "chat:room"


ROOMS = [ROOM, *(f"chat:{number}" for number in range(49))]


NAMES = "messaging:names"


def inside(node: FakeNode) -> Any:
    """The directory's private parts, to force states that cannot be timed from outside."""
    return node.directory


async def names_of(node: FakeNode) -> dict[str, Owner]:
    names = await node.directory.list_names(NAMES)
    found = {name: await node.directory.find(NAMES, name) for name in names}
    return {name: owner for name, owner in found.items() if owner is not None}


async def populate(cluster: RedisTestCluster, node: FakeNode, count: int) -> None:
    for serial in range(count):
        await node.enter(ROOM, serial, f"{node.node_id}-{serial}")
        await node.claim(NAMES, f"{node.node_id}-{serial}", serial)
    await cluster.until(lambda: cluster.heard(ROOM)[-1:] == [f"joined {node.node_id}-{count - 1}".encode()])


def told(cluster: RedisTestCluster, kind: str, room: str = ROOM) -> Counter[bytes]:
    return Counter(notice for notice in cluster.heard(room) if notice.startswith(kind.encode() + b" "))


def each_once(kind: str, node_id: str, count: int) -> Counter[bytes]:
    return Counter({f"{kind} {node_id}-{serial}".encode(): 1 for serial in range(count)})


async def never(timings: Timings, factor: float, claim: Callable[[], object]) -> None:
    """Check that something does not become true while leases could expire and be cleaned up."""
    loop = asyncio.get_running_loop()
    until = loop.time() + factor * timings.ttl_s
    while loop.time() < until:
        assert not claim()
        await asyncio.sleep(timings.look_s / 10)  # absence over time is tested


async def all_claimed(node: FakeNode, count: int) -> bool:
    return len(await node.directory.list_names(NAMES)) == count
