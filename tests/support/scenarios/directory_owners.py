"""Owners of entries, and the notices published about them."""

from snorky.gateway.contracts.directory import Owner
from snorky.gateway.redis.multi.directory import SpreadDirectory
from tests.support.fakes.directories import FakeNode, TestCluster

ROOM = "chat:room"


NAMES = "messaging:names"


def owner(node: FakeNode, serial: int, key: str = ROOM) -> Owner:
    directory = node.directory.of(key) if isinstance(node.directory, SpreadDirectory) else node.directory
    return Owner(node.node_id, directory.incarnation, serial)


async def hears(cluster: TestCluster, roster: str, *notices: bytes) -> None:
    """Wait for the last notice, and check that these are all, in this order."""
    await cluster.until(lambda: len(cluster.heard(roster)) >= len(notices))
    assert cluster.heard(roster) == list(notices)


async def fence(cluster: TestCluster, node: FakeNode) -> None:
    """Return when all earlier publications have been received."""
    await node.directory.enter("cursors:doc", 999, "fence")
    await node.directory.leave("cursors:doc", 999)
    await cluster.until(lambda: cluster.heard("cursors:doc")[-1:] == [b"left fence"])
