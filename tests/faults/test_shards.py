"""One server of several fails alone: a shard of a Cluster, or one of several independent Redis servers."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs

from snorky.gateway import ServiceRegistry, Settings
from snorky.gateway.contracts.history import History
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.http.health import ops_routes
from snorky.gateway.protocol.publication import Position
from snorky.gateway.redis import RedisDirectory
from snorky.gateway.redis.admin.inspect import inspect_redis
from snorky.gateway.redis.keys import leases_key, names_key, owned_key
from snorky.gateway.redis.multi.hashing import targets_of
from snorky.gateway.redis.target import target_from_url
from snorky.gateway.runtime.node import running_node
from snorky.services.pubsub import PubSubService
from tests.support.fakes.brokers import PREFIX
from tests.support.fakes.directories import FAST, FakeNode, RedisTestCluster
from tests.support.processes.tools import eventually
from tests.support.servers.clusters import ClusterLab
from tests.support.servers.redis_servers import RedisServer, SpreadServers
from tests.support.servers.shards import keepers_of, key_on, shard_of
from tests.support.servers.shared import SharedServers

pytestmark = pytest.mark.needs("redis-server")

HOUR = History(3600.0, 1000)
REPAIRED_S = 6.0  # a look, and the repair


@pytest.fixture
async def lab(shared: SharedServers) -> AsyncIterator[ClusterLab]:
    async with asyncio.timeout(90.0), shared.lend("cluster") as running:
        assert isinstance(running, ClusterLab)
        yield running


@pytest.fixture
async def spread(shared: SharedServers) -> AsyncIterator[SpreadServers]:
    async with asyncio.timeout(60.0), shared.lend("spread") as running:
        assert isinstance(running, SpreadServers)
        yield running


# -- histories -------------------------------------------------------------------------------------------------


async def fill(keeper: Any, key: str, count: int) -> list[Position]:
    return [await keeper.publish(key, b"%d" % number, HOUR) for number in range(count)]


async def until_epochs_are_others(keeper: Any, key: str, positions: list[Position]) -> None:
    async def is_answered() -> bool:
        with suppress(BrokerUnavailable):
            await keeper.position(key)
            return True
        return False

    await eventually(is_answered, within_s=REPAIRED_S, what="the server answers again")
    for position in positions:
        assert await keeper.read(key, position, is_away=True) is None
    now = await keeper.position(key)
    assert now.epoch != positions[0].epoch and now.offset == 5


async def test_histories_of_a_shard_that_went_back_have_new_epochs(lab: ClusterLab) -> None:
    key, other = key_on(0), key_on(1)
    async with keepers_of(lab.url, 2) as keepers:
        positions, others = await fill(keepers[0], key, 5), await fill(keepers[0], other, 1)
        await lab.ask(0, "SAVE")
        positions += await fill(keepers[0], key, 25)
        others += await fill(keepers[0], other, 25)
        await lab.restart(0)
        for keeper in keepers:
            await until_epochs_are_others(keeper, key, positions)
            found = await keeper.read(other, others[0], is_away=True)
            assert found is not None and len(found) == 25, "nothing is lost on another shard"


async def test_histories_of_one_of_several_that_went_back_have_new_epochs(spread: SpreadServers) -> None:
    down, up = spread.servers
    found = targets_of(spread.url)
    key, other = (
        next(key for n in range(1000) if found.of(key := f"pubsub:{n}").safe_url == server.url) for server in (down, up)
    )
    async with keepers_of(spread.url) as (keeper,):
        positions, others = await fill(keeper, key, 5), await fill(keeper, other, 1)
        await save(down)
        positions += await fill(keeper, key, 25)
        others += await fill(keeper, other, 25)
        await down.restart()
        await until_epochs_are_others(keeper, key, positions)
        kept = await keeper.read(other, others[0], is_away=True)
        assert kept is not None and len(kept) == 25


# -- rosters and names -----------------------------------------------------------------------------------------


async def save(server: RedisServer) -> None:
    client = server.client()
    await client.save()
    await client.aclose()


async def populate(node: FakeNode, rooms: Iterable[str], names: Iterable[str], serials: Iterable[int]) -> None:
    for serial in serials:
        for room in rooms:
            await node.enter(room, serial, f"{node.node_id}-{serial}")
        for each in names:
            assert await node.claim(each, f"{node.node_id}-{serial}", serial)


async def truth(node: FakeNode, rooms: Iterable[str], names: Iterable[str]) -> list[object]:
    found: list[object] = [await node.directory.members(room) for room in rooms]
    for each in names:
        for name in sorted(await node.directory.list_names(each)):
            found.append((each, name, await node.directory.find(each, name)))
    return found


async def until_reaped(node: FakeNode, owner: str, rooms: Iterable[str], names: Iterable[str]) -> None:
    """Wait until nothing of a dead node is left on any server. Servers answer independently of each other."""

    async def is_reaped() -> bool:
        owners = [each.owner for room in rooms for each in await node.directory.members(room)]
        for each in names:
            held = [await node.directory.find(each, name) for name in await node.directory.list_names(each)]
            owners += [holder for holder in held if holder is not None]
        return owner not in [each.node_id for each in owners]

    await eventually(is_reaped, within_s=30.0, what=f"node {owner} is cleaned up")


async def until_true(node: FakeNode, rooms: list[str], names: list[str], expected: list[object]) -> None:
    found: list[object] = []

    async def is_so() -> bool:
        with suppress(BrokerUnavailable):
            found[:] = await truth(node, rooms, names)
        return found == expected

    try:
        await eventually(is_so, within_s=15.0, what="rosters and names match the nodes")
    except AssertionError as error:
        raise AssertionError(f"there is {found}, expected {expected}") from error


@pytest.mark.parametrize("which", ["apart from the index", "with the leases"])
async def test_former_entries_on_a_rolled_back_shard_are_removed(lab: ClusterLab, which: str) -> None:
    rooms = [key_on(shard, "chat") for shard in range(3)]
    names = [key_on(shard, "messaging", names_key) for shard in range(3)]
    async with AsyncExitStack() as stack:
        cluster = RedisTestCluster(lab, stack, FAST)
        await cluster.listen(*rooms)
        a, b, dead = [await cluster.node(node_id) for node_id in ("a", "b", "dead")]
        index = shard_of(owned_key(PREFIX, f"a:{a.directory.incarnation}"))  # restored with it, it would list them
        at = shard_of(leases_key(PREFIX)) if which == "with the leases" else (index + 1) % 3
        for node in (a, b, dead):
            await populate(node, rooms, names, range(3))
        assert await a.claim(names[at], "moves", 0)
        await lab.ask(at, "SAVE")
        await a.disowned(1)
        await a.directory.release(names[at], "moves", 0)
        a.names.pop((names[at], "moves"))
        assert await b.claim(names[at], "moves", 2)
        await populate(b, rooms, names, [7])
        gone = await dead.directory.members(rooms[at])
        await cluster.crash(dead)
        await until_reaped(b, "dead", rooms, names)
        assert [member for member in gone if member.owner.node_id == "dead"]
        expected = await truth(b, rooms, names)
        await lab.restart(at)
        await until_true(a, rooms, names, expected)
        assert not a.lost and not b.lost
        late = await cluster.node("late")
        await until_true(late, rooms, names, expected)


async def test_names_are_waited_for_after_the_run_of_each_shard_is_another(lab: ClusterLab) -> None:
    async with AsyncExitStack() as stack:
        a: Any = (await RedisTestCluster(lab, stack, FAST).node("a")).directory
        upkeep = a._reconciler

        async def knows(count: int) -> bool:
            return len(upkeep._last_runs or ()) == count

        await eventually(lambda: knows(3), within_s=5.0, what="the run ids are known")
        for at in (0, 2):
            upkeep._contest_until = 0.0
            before = upkeep._last_runs
            await lab.restart(at)

            async def is_patient(known: set[bytes] = before) -> bool:
                return upkeep._last_runs != known and upkeep._contest_until > 0.0

            await eventually(is_patient, within_s=REPAIRED_S, what="the new run id is known")


async def test_entries_of_a_dead_node_missing_in_its_older_index_are_removed(lab: ClusterLab) -> None:
    """Its index is rolled back, the entries are not; no node is left to register it again."""
    async with AsyncExitStack() as stack:
        cluster = RedisTestCluster(lab, stack, FAST)
        rooms = [key_on(shard, "chat") for shard in range(3)]
        await cluster.listen(*rooms)
        a, dead = await cluster.node("a"), await cluster.node("dead")
        await populate(a, rooms, [], [0])
        at = shard_of(owned_key(PREFIX, f"dead:{dead.directory.incarnation}"))
        await lab.ask(at, "SAVE")
        await populate(dead, rooms, [], [0])
        expected = [
            [member for member in await a.directory.members(room) if member.owner.node_id == "a"] for room in rooms
        ]
        await cluster.crash(dead)
        await lab.restart(at)
        await until_true(a, rooms, [], list(expected))


async def test_entries_of_a_dead_node_with_a_rolled_back_lease_are_removed(lab: ClusterLab) -> None:
    """It started and died after the copy of the shard with the leases was made: no other node knows of it."""
    home = shard_of(leases_key(PREFIX))
    rooms = [key_on(shard, "chat") for shard in range(3) if shard != home]
    async with AsyncExitStack() as stack:
        cluster = RedisTestCluster(lab, stack, FAST)
        await cluster.listen(*rooms)
        a = await cluster.node("a")
        await populate(a, rooms, [], [0])
        expected = await truth(a, rooms, [])
        await lab.ask(home, "SAVE")
        while True:
            dead = await cluster.node("dead")
            if shard_of(owned_key(PREFIX, f"dead:{dead.directory.incarnation}")) != home:
                break
            await cluster.crash(dead)
        await populate(dead, rooms, [], [0])
        await cluster.crash(dead)
        await lab.restart(home)
        await until_true(a, rooms, [], expected)


async def test_a_rolled_back_server_of_several_ends_with_the_nodes_entries(spread: SpreadServers) -> None:
    down = spread.servers[0]
    found = targets_of(spread.url)
    rooms = [next(k for n in range(99) if found.of(k := f"chat:{n}").safe_url == each.url) for each in spread.servers]
    names = [next(k for n in range(99) if found.of(k := f"x:{n}").safe_url == each.url) for each in spread.servers]
    async with AsyncExitStack() as stack:
        cluster = RedisTestCluster(spread, stack, FAST)
        await cluster.listen(*rooms)
        a, b, dead = [await cluster.node(node_id) for node_id in ("a", "b", "dead")]
        for node in (a, b, dead):
            await populate(node, rooms, names, range(3))
        await save(down)
        await a.disowned(1)
        await populate(b, rooms, names, [7])
        await cluster.crash(dead)
        await until_reaped(b, "dead", rooms, names)
        expected = await truth(b, rooms, names)
        await down.restart()
        await until_true(a, rooms, names, expected)
        assert not a.lost and not b.lost


async def test_a_missing_scan_right_is_reported_and_the_rest_works(lab: ClusterLab) -> None:
    for at in range(3):
        await lab.ask(at, "ACL", "SETUSER", "node", "on", ">secret", "~*", "&*", "+@all", "-scan")
    url = lab.url.replace("redis+cluster://", "redis+cluster://node:secret@")
    report = await inspect_redis(target_from_url(url), PREFIX)
    assert [each for each in report.notes if "+scan" in each] and not report.problems
    async with AsyncExitStack() as stack:
        lab_as_node: Any = SimpleNamespace(url=url)
        with capture_logs() as logs:
            node = await RedisTestCluster(lab_as_node, stack, FAST).node("a")
            reindex = cast(RedisDirectory, node.directory)._reindex

            async def is_told() -> bool:
                return any("NOPERM" in each.get("error", "") for each in logs) and reindex.is_pending

            await eventually(is_told, within_s=REPAIRED_S, what="the log names the right")
        assert await node.enter(key_on(0, "chat"), 1, "alice")


# -- readiness -------------------------------------------------------------------------------------------------


async def until_says(http: Any, status: int) -> dict[str, Any]:
    body: dict[str, Any] = {}

    async def says() -> bool:
        nonlocal body
        async with http.get("/readyz") as answer:
            body = await answer.json()
            return bool(answer.status == status)

    await eventually(says, within_s=15, what=f"/readyz is {status}: {body}")
    return body


async def check_refusal(url: str, server: RedisServer) -> None:
    """Make one server require a replica that it lacks, then undo that."""
    client = server.client()
    registry = ServiceRegistry([PubSubService()])
    async with running_node(registry, settings=Settings(redis_url=url)) as node:
        app = web.Application()
        app.add_routes(ops_routes(node))
        async with TestClient(TestServer(app)) as http:
            await until_says(http, 200)
            await client.config_set("min-replicas-to-write", 1)
            body = await until_says(http, 503)
            assert body["reasons"] == ["redis_refuses"]
            assert f"127.0.0.1:{server.port}" in body["advice"], "which of them it is"
            assert node.metrics.registry.get_sample_value("snorky_redis_refusing") == 1
            await client.config_set("min-replicas-to-write", 0)
            assert (await until_says(http, 200))["reasons"] == []
    await client.aclose()


async def test_a_shard_that_refuses_writes_makes_nodes_unready_and_is_named(lab: ClusterLab) -> None:
    home = shard_of(leases_key(PREFIX))
    await check_refusal(lab.url, lab.servers[(home + 1) % 3])


async def test_one_of_several_that_refuses_writes_makes_nodes_unready_and_is_named(spread: SpreadServers) -> None:
    await check_refusal(spread.url, spread.servers[1])
