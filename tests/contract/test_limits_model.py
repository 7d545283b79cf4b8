"""Random sequences of events against what nodes count against limits together: never above the maximum."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.test_limits import counting, expire, the_redis
from tests.support.servers.redis_servers import RedisServer, start_server

NODES, MAXIMUM = 3, 4
STEP = st.one_of(
    st.tuples(st.just("take"), st.integers(0, NODES - 1), st.integers(1, 3)),
    st.tuples(st.just("give back"), st.integers(0, NODES - 1), st.integers(1, 3)),
    st.tuples(st.just("expire"), st.integers(0, NODES - 1), st.just(0)),
    st.tuples(st.just("renew"), st.integers(0, NODES - 1), st.just(0)),
    st.tuples(st.just("lose data"), st.just(0), st.just(0)),
)


@pytest.fixture
def model_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server for many event loops, one for each example."""
    server = start_server("valkey", tmp_path)
    assert isinstance(server, RedisServer)
    asyncio.run(server.__aenter__())
    yield server
    asyncio.run(server.__aexit__(None, None, None))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=25))
def test_no_sequence_of_events_exceeds_the_maximum(
    steps: list[tuple[str, int, int]], model_server: RedisServer
) -> None:
    asyncio.run(play(steps, model_server.url))


async def play(steps: list[tuple[str, int, int]], url: str) -> None:
    """Play the steps on a real server. Nodes whose units expired, or that Redis lost, are at fault until they renew."""
    async with counting(url) as make, the_redis(url) as redis:
        await redis.flushall()
        nodes = [make(f"n{number}", renew_s=3600.0) for number in range(NODES)]
        in_doubt: set[int] = set()
        for what, number, units in steps:
            node = nodes[number]
            if what == "take":
                room = MAXIMUM - sum(each.held["ann"] for each in nodes)
                is_granted = await node.take("ann", MAXIMUM, units)
                if not in_doubt:
                    assert is_granted == (units <= room)
                in_doubt.discard(number)
            elif what == "give back" and node.held["ann"] >= units:
                node.give_back("ann", units)
                await node.settled("ann")
                in_doubt.discard(number)
            elif what == "expire":
                await expire(url, f"n{number}")
                in_doubt.add(number)
            elif what == "lose data":
                await redis.flushall()
                in_doubt = set(range(NODES))
            elif what == "renew":
                await node.settled("ann")
                in_doubt.discard(number)
            assert sum(each.held["ann"] for at, each in enumerate(nodes) if at not in in_doubt) <= MAXIMUM
        for node in nodes:
            await node.settled("ann")
        assert sum(node.held["ann"] for node in nodes) <= MAXIMUM
