"""Sentinels that disagree, are down, or know nothing: which server counts as the primary."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from snorky.gateway.redis import RedisTarget
from snorky.gateway.redis.connection.resp import DialError
from snorky.gateway.redis.target import target_from_url
from tests.support.servers.scripted_redis import Command, ScriptedRedis

Answer = Callable[[Command], bytes | None]


def bulks(*words: object) -> bytes:
    spelt = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(spelt) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in spelt)


def saying(port: int, *, epoch: int = 0) -> Answer:
    """A sentinel that names a primary."""

    def answer(command: Command) -> bytes:
        if command[1] == b"GET-MASTER-ADDR-BY-NAME":
            return bulks("127.0.0.1", port) if command[2] == b"main" else b"*-1\r\n"
        return bulks("name", "main", "config-epoch", epoch)

    return answer


def role(name: str) -> Answer:
    """A server that reports its role."""
    return lambda command: bulks(name, 0) if command == (b"ROLE",) else None


class Scene:
    """Makes servers that end with the test."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def server(self, answer: Answer | None = None) -> ScriptedRedis:
        return await self._stack.enter_async_context(ScriptedRedis(answer))

    def target(self, *sentinels: ScriptedRedis, name: str = "main") -> RedisTarget:
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
        return target_from_url(f"redis+sentinel://user:secret@{places}/{name}/3")


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with asyncio.timeout(30.0), AsyncExitStack() as stack:
        yield Scene(stack)


async def test_the_primary_is_the_one_named_by_the_sentinels_with_the_targets_login(scene: Scene) -> None:
    primary = await scene.server(role("master"))
    sentinels = [await scene.server(saying(primary.port)) for _ in range(3)]
    found = await scene.target(*sentinels).resolved()
    assert (found.host, found.port, found.db, found.username) == ("127.0.0.1", primary.port, 3, "user")
    assert not found.is_moving


async def test_a_sentinel_of_former_days_is_not_believed(scene: Scene) -> None:
    old, new = await scene.server(role("master")), await scene.server(role("master"))
    stale, fresh = await scene.server(saying(old.port, epoch=1)), await scene.server(saying(new.port, epoch=2))
    gone = await scene.server()  # it never answers, so both others are asked
    assert (await scene.target(stale, gone, fresh).resolved()).port == new.port


async def test_of_equal_epochs_the_more_frequent_answer_counts(scene: Scene) -> None:
    one, other = await scene.server(role("master")), await scene.server(role("master"))
    sentinels = [await scene.server(saying(port)) for port in (one.port, other.port, other.port)]
    silent = [await scene.server() for _ in range(2)]
    assert (await scene.target(*sentinels, *silent).resolved()).port == other.port


async def test_one_sentinel_that_is_left_is_enough_to_connect(scene: Scene) -> None:
    primary = await scene.server(role("master"))
    left, dead = await scene.server(saying(primary.port)), await scene.server()
    dead.drop()
    assert (await scene.target(dead, left, dead).resolved()).port == primary.port


@pytest.mark.parametrize("name", ["slave", "sentinel"])
async def test_a_server_without_the_role_master_is_no_primary(scene: Scene, name: str) -> None:
    replica = await scene.server(role(name))
    sentinel = await scene.server(saying(replica.port))
    with pytest.raises(DialError, match="is no primary"):
        await scene.target(sentinel).resolved()


async def test_an_unknown_name_is_reported(scene: Scene) -> None:
    sentinel = await scene.server(saying(1))
    with pytest.raises(DialError, match=r"no sentinel names the primary of 'other'.*does not know that name"):
        await scene.target(sentinel, name="other").resolved()


async def test_a_server_that_is_no_sentinel_is_reported(scene: Scene) -> None:
    server = await scene.server(lambda _: b"-ERR unknown command 'SENTINEL'\r\n")
    with pytest.raises(DialError, match="unknown command"):
        await scene.target(server).resolved()


async def test_concurrent_callers_share_one_query(scene: Scene) -> None:
    primary = await scene.server(role("master"))
    sentinel = await scene.server(saying(primary.port))
    target = scene.target(sentinel)
    await asyncio.gather(*(target.resolved() for _ in range(10)))
    assert sentinel.connections == 1
    await target.resolved(max_age_s=60.0)
    assert sentinel.connections == 1
    await target.resolved()
    assert sentinel.connections == 2
