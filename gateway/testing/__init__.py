"""For tests of your own services: a cluster of nodes in one process, without a network and without Redis.

    from snorky.gateway.testing import memory_cluster

    async with memory_cluster(3, lambda: [Bids("bids")]) as cluster:
        watcher = await cluster.connect(node=0)
        bidder = await cluster.connect(node=2, identity="bob")
        await watcher.call("bids", "watch", lot="chair")
        await bidder.call("bids", "bid", lot="chair", amount=10)
        assert await watcher.next_message() == {"type": "bid", "lot": "chair", "amount": 10}

It does not depend on a test framework: use it in any coroutine.
"""

from snorky.gateway.testing.client import CallFailed, MemoryClient, NotReceived
from snorky.gateway.testing.cluster import MemoryCluster, memory_cluster, settle

__all__ = ["CallFailed", "MemoryClient", "MemoryCluster", "NotReceived", "memory_cluster", "settle"]
