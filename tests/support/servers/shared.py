"""Servers that tests use one after another: starting a Cluster takes longer than most tests that need one.

    async with shared.lend("cluster") as server: ...    # as if it had just been started

Rules:
- One test at a time has a server; a second one of its kind is another server.
- After the test, the server is kept only if it is as it was at its start: it runs and answers, with the same
  configuration, users and slots. Otherwise it is ended, and the next test starts another.
- Of a kept server everything else is removed: keys, functions, scripts, connections, statistics, its snapshot.
- fakeredis is not kept: it starts at once.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.target import target_from_url
from tests.support.servers.clusters import ClusterLab
from tests.support.servers.redis_servers import AnyServer, FakeRedisServer, RedisServer, start_server

__all__ = ["Servers", "SharedServers", "make_servers"]

Servers = AnyServer | ClusterLab

ANSWER_WITHIN_S: Final = 1.0  # a server that a test has left stopped or paused does not answer
_CLEAN: Final[Sequence[Sequence[Any]]] = (
    ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"),
    ("CLIENT", "KILL", "TYPE", "pubsub"),
    ("FLUSHALL",),
    ("FUNCTION", "FLUSH"),
    ("SCRIPT", "FLUSH"),
    ("ACL", "LOG", "RESET"),
    ("SLOWLOG", "RESET"),
    ("CONFIG", "RESETSTAT"),
)


def make_servers(kind: str, directory: Path) -> Servers:
    """Make a server of any kind, two as one ("spread"), or a Cluster without replicas; enter it to start it."""
    return ClusterLab("redis", directory) if kind == "cluster" else start_server(kind, directory)


class SharedServers:
    """The servers of one session, at most one of each kind. directory: for their files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._kept: dict[str, tuple[Servers, object]] = {}  # with its state after the start

    @asynccontextmanager
    async def lend(self, kind: str) -> AsyncIterator[Servers]:
        """Provide an empty server of a kind until the block ends. Skips the test if its program is missing."""
        server, state = self._kept.pop(kind, None) or (make_servers(kind, Path(mkdtemp(dir=self._directory))), None)
        is_as_it_was = False
        try:
            if state is None:
                await server.__aenter__()
                state = await _state_of(server)
            try:
                yield server
            finally:
                is_as_it_was = state is not None and await _clean(server, state)
        finally:
            if is_as_it_was and kind not in self._kept:
                self._kept[kind] = server, state
            else:
                await server.stop()

    async def close(self) -> None:
        """End all servers."""
        kept, self._kept = self._kept, {}
        for server, _ in kept.values():
            await server.stop()


def _processes(server: Servers) -> Sequence[RedisServer]:
    if isinstance(server, FakeRedisServer):
        return ()
    return [server] if isinstance(server, RedisServer) else server.servers


async def _state_of(server: Servers) -> object:
    """Return the state that a test may have changed and `_clean` does not restore; None: such a server is not kept."""
    asked = [("CONFIG", "GET", "*"), ("ACL", "LIST")]
    if isinstance(server, ClusterLab):
        asked.append(("CLUSTER", "SLOTS"))
    return [await _ask(each, *asked) for each in _processes(server)] or None


async def _clean(server: Servers, state: object) -> bool:
    """Remove everything that a test has left; False if the server is not as it was at its start."""
    with suppress(RedisError, OSError, AssertionError):
        if await _state_of(server) == state:
            for each in _processes(server):
                await _ask(each, *_CLEAN)
                each.dump.unlink(missing_ok=True)
            return True
    return False


async def _ask(server: RedisServer, *commands: Sequence[Any]) -> list[Any]:
    assert server.is_running, "it has ended"
    async with client_of(target_from_url(server.url), timeout_s=ANSWER_WITHIN_S) as client:
        assert isinstance(client, Redis)
        return [await client.execute_command(*words) for words in commands]
