"""RedisSource: publishes as a backend job does, through Redis alone; with history, once and in order."""

import time
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

__all__ = ["RedisSource"]

TIMEOUT_S = 2.0
FORGET_EVERY_S = 0.5


class RedisSource:
    """One Redis of any topology, by the URL that nodes use too. Never retries: the caller does, with a key."""

    def __init__(self, url: str, *, keeps_history: bool, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._forgot_s = 0.0
        self._keeps_history = keeps_history
        self._sentinel: Sentinel | None = None
        self.client: Any = self._client(url)

    def _client(self, url: str) -> Any:
        once: dict[str, Any] = {
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": self._timeout_s,
            "socket_connect_timeout": TIMEOUT_S,
        }
        parts = urlsplit(url)
        if parts.scheme == "redis":
            return Redis.from_url(url, **once)
        hosts = [(host, int(port)) for host, _, port in (pair.rpartition(":") for pair in parts.netloc.split(","))]
        if parts.scheme == "redis+sentinel":
            self._sentinel = Sentinel(hosts, **once)
            return self._sentinel.master_for(parts.path.split("/")[1], **once)
        return RedisCluster(startup_nodes=[ClusterNode(*host) for host in hosts], **once)

    async def publish(self, name: str, payload: bytes, key: str) -> str | None:
        """Publish once; returns the position. Raises the errors of redis-py: the message may have been published."""
        if not self._keeps_history:
            await self.client.publish(name, payload)
            return None
        words = ("FCALL", "snorky_publish", 1, name, payload, key)
        if isinstance(self.client, RedisCluster):
            position = await self._on_cluster(self.client, name, words)
        else:
            position = await self.client.execute_command(*words)
        return position.decode() if isinstance(position, bytes) else str(position)

    async def _on_cluster(self, client: RedisCluster, name: str, words: tuple[Any, ...]) -> Any:
        """Send to the slot's server: redis-py knows no keys of FCALL and keeps asking one server, even a dead one."""
        try:
            await client.initialize()
            return await client.execute_command(*words, target_nodes=client.get_node_from_key(name))
        except Exception:
            now_s = time.monotonic()
            if now_s - self._forgot_s > FORGET_EVERY_S:  # other calls use the same connections
                self._forgot_s = now_s
                await client.aclose()  # the next call reads the slot map again
            raise

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()
        for sentinel in self._sentinel.sentinels if self._sentinel is not None else ():
            await sentinel.aclose()
