"""Presence with a node that received nothing for a while: its clients stay connected and end with correct rosters."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from snorky.gateway import Node, ServiceRegistry, Settings
from snorky.gateway.presence.roster_view import GRACE_S
from snorky.gateway.runtime.node import running_node
from snorky.services.chat import ChatService
from tests.support.fakes.fake_wire import UNLIMITED
from tests.support.fakes.memory_cluster import Resident
from tests.support.processes.proxy import FaultProxy
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import RedisServer

pytestmark = pytest.mark.needs("redis-server")

HEALED_S = 5.0
TAKEN_FOR_DEAD_S = 30.0  # 11 s after its last renewal
STORM_S = 3.0
PEOPLE = [f"person-{number}" for number in range(20)]


@dataclass
class Street:
    """Two nodes on one Redis; the first reaches it through a proxy."""

    redis: RedisServer
    proxy: FaultProxy
    nodes: list[tuple[Node, ServiceRegistry]]

    async def joined(self, number: int, identity: str) -> Resident:
        client = Resident(*self.nodes[number], identity)
        reply = await client.ask("chat", "join", channel="room")
        assert identity in reply["members"], reply
        return client

    async def until_all_hear(self) -> None:
        async def all_hear() -> bool:
            return all(node.is_ready for node, _ in self.nodes)

        await eventually(all_hear, within_s=10, what="both nodes receive from Redis")


@pytest.fixture
async def street(tmp_path: Path) -> AsyncIterator[Street]:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer("redis", tmp_path))
        proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", redis.port))
        built = Street(redis, proxy, [])
        for url in (proxy.url, redis.url):
            registry = ServiceRegistry([ChatService()])
            settings = Settings(redis_url=url, limits=UNLIMITED)
            built.nodes.append((await stack.enter_async_context(running_node(registry, settings=settings)), registry))
        await built.until_all_hear()
        yield built
        for node, _ in built.nodes:
            for connection in node.connections:
                node.disconnect(connection, 1000)


def told(client: Resident) -> list[tuple[str, str]]:
    return [(each["from"], each["status"]) for each in client.notifications if each["type"] == "presence"]


async def until_told(client: Resident, *expected: tuple[str, str], within_s: float) -> None:
    async def has_come() -> bool:
        return set(expected) <= set(told(client))

    await eventually(has_come, within_s=within_s, what=f"{expected} is reported, got {told(client)}")


async def test_joins_and_leaves_missed_by_a_cut_off_node_are_reported_once(street: Street) -> None:
    leaver = await street.joined(1, "leaver")
    watcher = await street.joined(0, "watcher")
    street.proxy.refuse()
    leaver.leave()
    await street.joined(1, "comer")
    await asyncio.sleep(1.0)  # the duration itself is part of the fault
    street.proxy.heal()
    await until_told(watcher, ("comer", "joined"), within_s=HEALED_S)
    await until_told(watcher, ("leaver", "left"), within_s=GRACE_S + HEALED_S)
    assert told(watcher) == [("comer", "joined"), ("leaver", "left")]
    assert not watcher.connection.is_closed


async def test_after_many_cuts_every_client_has_the_correct_members(street: Street) -> None:
    rng = random.Random(7)
    watchers = [await street.joined(0, f"watcher-{number}") for number in range(3)]
    there: dict[str, Resident] = {}
    observer = street.redis.client()

    is_over = asyncio.Event()

    async def come_and_go() -> None:
        while not is_over.is_set():
            person = rng.choice(PEOPLE)
            if person in there:
                there.pop(person).leave()
            else:
                there[person] = await street.joined(1, person)
            await asyncio.sleep(0.005)

    async def kill() -> None:
        while not is_over.is_set():
            await asyncio.sleep(rng.uniform(0.05, 0.3))
            await observer.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    async with asyncio.TaskGroup() as storm:
        storm.create_task(come_and_go())
        storm.create_task(kill())
        await asyncio.sleep(STORM_S)  # the duration itself is part of the fault
        is_over.set()
    await observer.aclose()
    await street.until_all_hear()

    def believes(watcher: Resident) -> set[str]:
        believed: set[str] = set()
        for identity, status in told(watcher):
            (believed.add if status == "joined" else believed.discard)(identity)
        return believed & set(PEOPLE)

    async def is_true() -> bool:
        roster = await street.nodes[1][0].ownership.directory.members("chat:room")
        present = {member.identity for member in roster} & set(PEOPLE)
        return all(believes(watcher) == present == set(there) for watcher in watchers)

    await eventually(is_true, within_s=GRACE_S + HEALED_S, what="all watchers have the correct members")
    missed = street.nodes[0][0].metrics.registry.get_sample_value(
        "snorky_presence_corrections_total", {"outcome": "joined"}
    )
    assert missed, "nothing was missed: no test"


def follow(client: Resident) -> set[str]:
    """Apply a client's list and notices. Raises AssertionError: a notice repeats what the client knew."""
    here: set[str] = set()
    for message in client.inbox:
        if message["type"] == "response":
            here = set(message["data"]["members"])
        elif message["type"] == "presence":
            who, has_joined = message["from"], message["status"] == "joined"
            assert (who in here) != has_joined, f"{client.connection.identity} got it twice: {message}"
            (here.add if has_joined else here.discard)(who)
    return here


async def until_follows(client: Resident, *expected: str, within_s: float) -> None:
    async def does() -> bool:
        return follow(client) == set(expected)

    await eventually(does, within_s=within_s, what=f"{client.connection.identity} knows the members")


async def test_a_crowd_that_joins_at_once_gets_no_member_twice(street: Street) -> None:
    crowd = [Resident(*street.nodes[number % 2], name) for number, name in enumerate(PEOPLE)]
    calls = [client.call("chat", "join", channel="room") for client in crowd]
    for client, call in zip(crowd, calls, strict=True):
        assert client.connection.identity in (await client.answer(call))["members"]
    for client in crowd:
        await until_follows(client, *PEOPLE, within_s=HEALED_S)
    last = await street.joined(1, "last")
    for client in (*crowd, last):  # everything in flight has arrived by then
        await until_follows(client, *PEOPLE, "last", within_s=HEALED_S)


async def test_after_missed_notices_a_node_reports_no_join_twice(street: Street) -> None:
    """Others took it for dead and reported its members as left; it has not received that."""
    other = await street.joined(1, "other")
    ann, bob = await street.joined(0, "ann"), await street.joined(0, "bob")
    for client in (other, ann, bob):
        await until_follows(client, "ann", "bob", "other", within_s=HEALED_S)
    street.proxy.lose_replies()
    await until_follows(other, "other", within_s=TAKEN_FOR_DEAD_S)
    street.proxy.heal()
    street.proxy.cut()
    await until_follows(other, "ann", "bob", "other", within_s=TAKEN_FOR_DEAD_S)
    newcomer = await street.joined(0, "newcomer")
    for client in (other, ann, bob, newcomer):
        await until_follows(client, "ann", "bob", "other", "newcomer", within_s=GRACE_S + HEALED_S)
