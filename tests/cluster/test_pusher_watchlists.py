"""`watchlists` of a Pusher app over several nodes: which users are online, and which clients are told."""

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any, Final

import pytest
from redis.asyncio import Redis

from snorky.gateway.connection.storage_quotas import ENTRY_BYTES
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.http.protocols.pusher.users import online_users
from snorky.gateway.http.protocols.pusher.users.online_users import OnlineUsers, online_users_of
from snorky.gateway.redis.multi.directory import SpreadDirectory
from tests.support.clients.pusher import PusherClient, connected
from tests.support.clients.pusher_xhr import connected_xhr
from tests.support.processes.nodes import NodeProcess, RedisProcess
from tests.support.processes.tools import eventually
from tests.support.scenarios.protocol_nodes import ENV, Nodes

APPS: Final = "SNORKY_PUBLIC__PUSHER_APPS__"
ON: Final = {f"{APPS}SHOP__WATCHLISTS": "true"}
OTHER_KEY, OTHER_SECRET = "other-key", "f1b7d94e63a1d8c28d2a5c1f070be376"
EVENT: Final = "pusher_internal:watchlist_events"
LATE_S: Final = 1.0
GRACE_S: Final = 8.0  # nodes register their users again meanwhile


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let users be offline a second after their last connection."""
    monkeypatch.setattr("snorky.gateway.runtime.node.OnlineUsers", lambda: OnlineUsers(late_s=LATE_S, grace_s=GRACE_S))


@pytest.fixture
async def urls(nodes: Nodes, soon: None) -> list[str]:
    return [await nodes.start(**ON) for _ in range(3)]


async def watching(client: PusherClient, user: str, watchlist: Any) -> None:
    """Sign a client in with a watchlist."""
    await client.signed_in({"id": user, "watchlist": watchlist})


async def told(client: PusherClient) -> list[tuple[str, list[str]]]:
    """Wait for the next event about a client's watchlist."""
    event = await client.event(EVENT)
    assert event.keys() == {"event", "data"}
    data = json.loads(event["data"])
    assert data.keys() == {"events"} and all(each.keys() == {"name", "user_ids"} for each in data["events"])
    return [(each["name"], each["user_ids"]) for each in data["events"]]


async def nothing_told(client: PusherClient) -> bool:
    return not [each for each in await client.fence() if each["event"] == EVENT]


async def until_watched(nodes: Nodes, count: int) -> None:
    """Wait until clients of the nodes together watch this many users, and all of these are known."""

    def known(gateway: Any) -> list[bool]:
        found = online_users_of(gateway.node)
        assert found is not None
        return [found._watched.is_online(key) is not None for key in found._watched.keys()]

    async def is_so() -> bool:
        found = [each for gateway in nodes.gateways for each in known(gateway)]
        return len(found) == count and all(found)

    await eventually(is_so, within_s=30, what=f"{count} watched users")


# -- who is online ----------------------------------------------------------------------------------------------------


async def test_client_is_told_who_is_online_and_what_changes_on_all_nodes(urls: list[str]) -> None:
    async with connected(urls[0]) as bob, connected_xhr("xhr", urls) as (eve, _), connected(urls[1]) as ann:
        await bob.signed_in({"id": "bob"})
        await eve.signed_in({"id": 7})
        await watching(ann, "ann", ["bob", "dan", 7])
        assert await told(ann) == [("online", ["bob", "7"])], "once, in the order of the list"
        async with connected(urls[2]) as dan:
            await dan.signed_in({"id": "dan"})
            assert await told(ann) == [("online", ["dan"])]
        assert await told(ann) == [("offline", ["dan"])]
        assert await nothing_told(bob) and await nothing_told(eve), "they watch nobody"


async def test_initial_event_comes_after_the_sign_in_and_not_if_nobody_is_online(nodes: Nodes, urls: list[str]) -> None:
    async with connected(urls[0]) as bob, connected(urls[1]) as ann:
        await watching(ann, "ann", ["bob"])
        await until_watched(nodes, 1)
        assert await nothing_told(ann)
        await bob.sign_in({"id": "bob", "watchlist": ["ann"]})
        names = []
        while EVENT not in names:
            await bob.fence()
            names = [each["event"] for each in bob.heard]
        assert names == ["pusher:signin_success", EVENT]
        assert await told(ann) == [("online", ["bob"])]


async def test_user_is_online_until_its_last_connection_on_any_node_ends(urls: list[str]) -> None:
    async with connected(urls[0]) as ann:
        await watching(ann, "ann", ["bob", "zoe"])
        async with connected(urls[1]) as again:
            async with connected(urls[2]) as first:
                await first.signed_in({"id": "bob"})
                assert await told(ann) == [("online", ["bob"])]
                await again.signed_in({"id": "bob"})
            async with connected(urls[2]) as zoe:
                await zoe.signed_in({"id": "zoe"})
                assert await told(ann) == [("online", ["zoe"])], "a second connection is no change"
            assert await told(ann) == [("offline", ["zoe"])], "bob's first connection ended earlier, and is no change"
        assert await told(ann) == [("offline", ["bob"])]


async def test_reload_of_a_page_makes_no_event(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snorky.gateway.runtime.node.OnlineUsers", lambda: OnlineUsers(late_s=3.0))
    urls = [await nodes.start(**ON) for _ in range(3)]

    async def is_away() -> bool:
        return await nodes.gateways[0].node.ownership.directory.identity_counts(["pusher.users:shop bob"]) == [0]

    async with connected(urls[0]) as ann:
        await watching(ann, "ann", ["bob"])
        for number in range(4):
            async with connected(urls[number % 3]) as bob:
                await bob.signed_in({"id": "bob"})
                if number == 0:
                    assert await told(ann) == [("online", ["bob"])]
            await eventually(is_away, within_s=30, what="bob's connection has ended")
        assert await told(ann) == [("offline", ["bob"])], "nothing before"


async def test_client_that_watches_its_own_user_is_told_that_it_is_online(urls: list[str]) -> None:
    async with connected(urls[0]) as ann:
        await watching(ann, "ann", ["ann"])
        assert await told(ann) == [("online", ["ann"])]


async def test_users_of_another_app_are_others(nodes: Nodes, soon: None) -> None:
    env = {**ON, f"{APPS}SHOP__SERVICE": "pubsub"}
    other = {"KEY": OTHER_KEY, "SECRET": OTHER_SECRET, "SERVICE": "pubsub", "WATCHLISTS": "true"}
    url = await nodes.start(**env, **{f"{APPS}OTHER__{name}": value for name, value in other.items()})
    async with connected(url, OTHER_KEY, OTHER_SECRET) as bob, connected(url) as ann:
        await bob.signed_in({"id": "bob"})
        await watching(ann, "ann", ["bob", "eve"])
        await until_watched(nodes, 2)
        assert await nothing_told(ann)
        async with connected(url) as eve:
            await watching(eve, "eve", ["ann"])
            assert await told(ann) == [("online", ["eve"])]
            assert await told(eve) == [("online", ["ann"])]


# -- ends of connections ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["terminated", "revoked", "another user"])
async def test_user_whose_connection_the_node_closes_is_offline(nodes: Nodes, urls: list[str], how: str) -> None:
    async with connected(urls[0]) as ann, connected(urls[1]) as bob:
        await watching(ann, "ann", ["bob", "eve"])
        await bob.signed_in({"id": "bob"})
        assert await told(ann) == [("online", ["bob"])]
        if how == "terminated":
            await nodes.gateways[2].node.control.give("disconnect", identity="bob", code=4500, reason="")
        elif how == "revoked":
            await nodes.gateways[2].node.auth.revoke("bob")
        else:
            await bob.sign_in({"id": "eve"})
        await bob.ended()
        assert await told(ann) == [("offline", ["bob"])]
        assert await nothing_told(ann)


async def test_client_that_moves_from_a_node_that_drains_makes_no_event(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # later than `soon`: the client must be back before
    monkeypatch.setattr("snorky.gateway.runtime.node.OnlineUsers", lambda: OnlineUsers(late_s=4.0, grace_s=GRACE_S))
    urls = [await nodes.start(**ON) for _ in range(3)]
    async with connected(urls[0]) as ann, connected(urls[1]) as bob, connected(urls[2]) as again:
        await watching(ann, "ann", ["bob", "zoe"])
        await bob.signed_in({"id": "bob"})
        assert await told(ann) == [("online", ["bob"])]
        drain = asyncio.create_task(nodes.gateways[1].drain())
        assert (await bob.ended())[0] == 4200
        await again.signed_in({"id": "bob"})
        await drain
        async with connected(urls[2]) as zoe:
            await zoe.signed_in({"id": "zoe"})
            assert await told(ann) == [("online", ["zoe"])]
        assert await told(ann) == [("offline", ["zoe"])], "bob would have been offline earlier"


async def test_watchers_and_users_that_have_gone_leave_nothing(nodes: Nodes, urls: list[str]) -> None:
    async with connected(urls[0]) as ann, connected(urls[0]) as eve:
        await watching(ann, "ann", ["bob", "dan"])
        await watching(eve, "eve", ["bob"])
        await until_watched(nodes, 2)
        await eve.signed_in({"id": "eve", "watchlist": []})
        await ann.signed_in({"id": "ann", "watchlist": ["bob"]})
        await until_watched(nodes, 1)
    await until_watched(nodes, 0)
    async with Redis.from_url(nodes.redis_url) as redis:

        async def is_empty() -> bool:
            channels = [each for each in await redis.pubsub_channels("*") if b"pusher.users" in each]
            return not channels and not await redis.keys("*{pusher.users:*")

        await eventually(is_empty, within_s=30, what="neither a roster nor a subscription is left")


async def test_users_stay_online_while_redis_loses_its_data(nodes: Nodes, urls: list[str]) -> None:
    async with connected(urls[0]) as ann:
        await watching(ann, "ann", ["bob"])
        async with connected(urls[1]) as bob:
            await bob.signed_in({"id": "bob"})
            assert await told(ann) == [("online", ["bob"])]
            async with Redis.from_url(nodes.redis_url) as redis:
                await redis.flushall()
                await redis.client_kill_filter(_type="pubsub")

                async def is_there() -> bool:
                    return bool(await redis.exists("snorky:nodes{pusher.users:shop bob}:roster"))

                await eventually(is_there, within_s=30.0, what="bob is registered again")
            assert await nothing_told(ann)
        assert await told(ann) == [("offline", ["bob"])]


async def test_users_of_a_node_that_is_killed_are_offline_unless_they_come_back(tmp_path: Any) -> None:
    async with RedisProcess.running(tmp_path) as redis, AsyncExitStack() as stack:
        quiet = {"SNORKY_PUBLIC__PING_INTERVAL_S": "300"}  # clients that are not asked answer no pings
        env = {**ENV, **ON, **quiet, "SNORKY_REDIS_URL": redis.url}
        victim, other = processes = [NodeProcess(env) for _ in range(2)]
        for node in processes:
            stack.push_async_callback(node.close)
        await asyncio.gather(*(node.wait_ready(60.0) for node in processes))
        victim_url, url = (f"http://127.0.0.1:{node.public_port}" for node in processes)
        async with connected(url) as ann, connected(victim_url) as bob, connected(victim_url) as eve:
            await watching(ann, "ann", ["bob", "eve"])
            for client, user in ((bob, "bob"), (eve, "eve")):
                await client.signed_in({"id": user})
                assert await told(ann) == [("online", [user])]
            victim.kill()
            await eve.ended()
            async with connected(url) as again:
                await again.signed_in({"id": "eve"})
                assert await told(ann) == [("offline", ["bob"])]
                assert await nothing_told(ann)

        async def is_forgotten() -> bool:
            return await other.metric("snorky_watched_users") == 0

        await eventually(is_forgotten, within_s=30.0, what="the node knows that ann has gone")


async def test_one_redis_of_two_that_is_down_keeps_no_others_from_being_known(
    nodes: Nodes, soon: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_users, "BEGIN_S", 2.0)
    async with RedisProcess.running(tmp_path) as second:
        url = await nodes.start(**ON, SNORKY_REDIS_URL=f"{nodes.redis_url},{second.url}")
        directory = nodes.gateways[0].node.ownership.directory
        assert isinstance(directory, SpreadDirectory)
        first, users = directory._directories.first, [f"user-{number}" for number in range(40)]
        near = next(each for each in users if directory.of(f"pusher.users:shop {each}") is first)
        far = next(each for each in users if directory.of(f"pusher.users:shop {each}") is not first)
        async with connected(url) as ann, connected(url) as dan, connected(url) as one, connected(url) as two:
            for client, user in ((ann, "ann"), (dan, "dan"), (one, near), (two, far)):
                await client.signed_in({"id": user})
            second.kill()
            await watching(ann, "ann", [far, near])
            await watching(dan, "dan", [near])
            assert await told(dan) == [("online", [near])]
            assert await told(ann) == [("online", [near])]
            assert len(await ann.fence()) == 0


# -- what is refused --------------------------------------------------------------------------------------------------

LONG: Final = "x" * 250  # with the app's id, too long for a channel


@pytest.mark.parametrize(
    "watchlist", ["bob", {"0": "bob"}, 7, True, [None], ["bob", ""], [["bob"]], [True], ["~7"], ["a\nb"], [LONG]]
)
async def test_watchlist_that_is_no_list_of_user_ids_is_an_error_and_the_user_is_signed_in(
    nodes: Nodes, watchlist: Any
) -> None:
    url = await nodes.start(**ON)
    async with connected(url) as ann:
        await watching(ann, "ann", watchlist)
        error = await ann.data("pusher:error")
        assert error["code"] is None and error["message"].startswith("The watchlist must be a list of user ids")
        assert await ann.fence() == []
        await until_watched(nodes, 0)
        await ann.subscribe("#server-to-user-ann")


@pytest.mark.parametrize("watchlist", [None, []])
async def test_empty_watchlist_is_none(nodes: Nodes, watchlist: Any) -> None:
    for env in (ON, {}):
        async with connected(await nodes.start(**env)) as ann:
            await watching(ann, "ann", watchlist)
            assert await ann.fence() == []


async def test_watchlist_has_at_most_a_hundred_different_users(nodes: Nodes) -> None:
    url = await nodes.start(**ON)
    users = [f"user-{number}" for number in range(101)]
    async with connected(url) as ann:
        await watching(ann, "ann", users)
        assert (await ann.data("pusher:error"))["code"] == 4302
        await until_watched(nodes, 0)
        metrics = nodes.gateways[0].node.metrics.registry
        assert metrics.get_sample_value("snorky_limit_hits_total", {"limit": "watchlist"}) == 1
        await watching(ann, "ann", [*users[:99], "ann", *users[:99]])
        assert await told(ann) == [("online", ["ann"])]
        await until_watched(nodes, 100)


async def test_app_without_watchlists_says_so_and_stores_nothing(nodes: Nodes) -> None:
    url = await nodes.start()
    async with connected(url) as ann:
        await watching(ann, "ann", ["bob"])
        assert (await ann.data("pusher:error"))["code"] == 4301
        assert await ann.fence() == []
        await until_watched(nodes, 0)
        async with Redis.from_url(nodes.redis_url) as redis:
            assert not await redis.keys("*{pusher.users:*")


async def test_redis_that_is_unavailable_ends_the_connection_which_then_signs_in_again(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise BrokerUnavailable("enter")

    url = await nodes.start(**ON)
    async with connected(url) as ann:
        monkeypatch.setattr(nodes.gateways[0].node.ownership.directory, "enter", fail)
        await ann.sign_in({"id": "ann", "watchlist": ["bob"]})
        code, reason = await ann.ended()
        assert code == 4100 and reason.startswith("unavailable")
        assert ann.heard == []
    await until_watched(nodes, 0)


async def test_user_whose_quota_is_used_up_is_signed_in_and_told(nodes: Nodes) -> None:
    url = await nodes.start(**ON, SNORKY_LIMITS__STORED_BYTES_PER_IDENTITY=str(ENTRY_BYTES))
    async with connected(url) as ann, connected(url) as again:
        for _ in range(3):  # only the first time counts
            await ann.signed_in({"id": "ann"})
            assert await ann.fence() == []
        await watching(again, "ann", ["ann"])
        assert (await again.data("pusher:error"))["message"].startswith("Others do not see that this user is online")
        assert await told(again) == [("online", ["ann"])]
        await again.subscribe("#server-to-user-ann")


async def test_answer_that_is_too_large_ends_the_connection(nodes: Nodes) -> None:
    url = await nodes.start(**ON, SNORKY_LIMITS__OUTBOX_MAX_BYTES="65536")
    async with connected(url) as ann:
        await ann.sign_in({"id": "ann", "watchlist": ["bob"], "user_info": "\b" * 15_000})
        code, reason = await ann.ended()
        assert code == 4009 and reason.startswith("too_large")
    await until_watched(nodes, 0)


async def test_list_that_replaces_another_repeats_nothing(urls: list[str]) -> None:
    async with connected(urls[0]) as ann, connected(urls[2]) as eve:
        await eve.signed_in({"id": "eve"})
        async with connected(urls[1]) as bob:
            await bob.signed_in({"id": "bob"})
            await watching(ann, "ann", ["bob"])
            assert await told(ann) == [("online", ["bob"])]
            await watching(ann, "ann", ["bob", "eve"])
            assert await told(ann) == [("online", ["eve"])]
        assert await told(ann) == [("offline", ["bob"])]


async def test_user_who_has_no_place_in_a_roster_is_signed_in_and_told(nodes: Nodes) -> None:
    url = await nodes.start(**ON)
    async with connected(url) as ann:
        await ann.signed_in({"id": LONG})
        assert (await ann.data("pusher:error"))["message"].startswith("Others do not see that this user is online")
        assert await ann.fence() == []
