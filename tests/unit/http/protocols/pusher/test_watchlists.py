"""Watchlists on one node: what each client is told, and from what a node learns who is online."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Container
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from snorky.gateway.errors import BrokerUnavailable, UnknownService
from snorky.gateway.http.protocols.pusher.users import online_users
from snorky.gateway.http.protocols.pusher.users.online_users import OnlineUsers, online_users_of
from snorky.gateway.http.protocols.pusher.users.watched import Watched, Watcher, user_key
from snorky.gateway.testing import MemoryCluster, memory_cluster
from tests.support.clients.pusher import watchlist_events_in
from tests.support.processes.tools import eventually

BOB, EVE, ZOE = (user_key("shop", each) for each in ("bob", "eve", "zoe"))


class Client:
    """Watches some users on a node, and knows who is online."""

    def __init__(self, cluster: MemoryCluster, node: int, *keys: str) -> None:
        self.online: set[str] = set()
        self.told: list[dict[str, list[str]]] = []
        self.users = users_of(cluster, node)
        self.watcher = Watcher(keys, self._hear)

    def _hear(self, event: bytes) -> None:
        found = watchlist_events_in(event)
        self.told.append(found)
        self.online = (self.online | set(found.get("online", ()))) - set(found.get("offline", ()))

    def watch(self) -> "Client":
        assert self.users.watch(self.watcher)
        return self

    async def knows(self, *users: str) -> None:
        async def is_so() -> bool:
            return self.online == set(users)

        await eventually(is_so, within_s=30, what=f"{users} are online, told {self.told}")


def users_of(cluster: MemoryCluster, node: int) -> OnlineUsers:
    found = online_users_of(cluster.nodes[node])
    assert found is not None
    return found


@asynccontextmanager
async def town(count: int = 2, **options: Any) -> AsyncIterator[MemoryCluster]:
    """Run nodes with watchlists. A user is offline at once, unless the options of OnlineUsers say otherwise."""
    options = {"late_s": 0.0, "grace_s": 0.0, **options}
    async with memory_cluster(count, lambda: [OnlineUsers(**options)]) as cluster, AsyncExitStack() as stack:
        for number, node in enumerate(cluster.nodes):
            await stack.enter_async_context(users_of(cluster, number).running(node))
        yield cluster


async def signed_in(cluster: MemoryCluster, node: int, key: str) -> Any:
    """Connect a user."""
    user = key.partition(" ")[2]
    client = await cluster.connect(node, user)
    await users_of(cluster, node).enter(client.connection, key, user)
    return client


async def test_user_is_online_from_its_first_connection_to_its_last_on_any_node() -> None:
    async with town(3) as cluster:
        first = await signed_in(cluster, 1, BOB)
        ann = Client(cluster, 0, BOB, EVE).watch()
        await ann.knows("bob")
        second = await signed_in(cluster, 2, BOB)
        eve = await signed_in(cluster, 0, EVE)
        await ann.knows("bob", "eve")
        first.disconnect()
        eve.disconnect()
        await ann.knows("bob")
        second.disconnect()
        await ann.knows()
        expected = [{"online": ["bob"]}, {"online": ["eve"]}, {"offline": ["eve"]}, {"offline": ["bob"]}]
        assert ann.told == expected


async def test_users_of_a_node_that_dies_are_offline() -> None:
    async with town(3) as cluster:
        await signed_in(cluster, 1, BOB)
        await signed_in(cluster, 1, EVE)
        await signed_in(cluster, 2, EVE)
        ann = Client(cluster, 0, BOB, EVE).watch()
        await ann.knows("bob", "eve")
        cluster.kill(1)
        await ann.knows("eve")


async def test_node_that_missed_notices_tells_the_true_state() -> None:
    async with town() as cluster:
        bob = await signed_in(cluster, 1, BOB)
        ann = Client(cluster, 0, BOB, EVE).watch()
        await ann.knows("bob")
        with cluster.messages_lost(0):
            bob.disconnect()
            await signed_in(cluster, 1, EVE)
            await cluster.settle()
        assert ann.users._again is not None
        ann.users._again.cancel()  # all users are read once more after the aftermath: not what this test is about
        await ann.knows("eve")


async def test_users_who_are_missing_after_an_interruption_stay_online_for_a_while() -> None:
    async with town(grace_s=0.3) as cluster:
        bob = await signed_in(cluster, 1, BOB)
        ann = Client(cluster, 0, BOB).watch()
        await ann.knows("bob")
        with cluster.messages_lost(0):
            bob.disconnect()
            await cluster.settle()
        began_s = asyncio.get_running_loop().time()
        await ann.knows()
        assert asyncio.get_running_loop().time() - began_s > 0.25


async def test_time_of_a_user_who_leaves_again_begins_again() -> None:
    async with town(late_s=100.0) as cluster:
        ann = Client(cluster, 0, BOB).watch()
        timers, left = ann.users._timers, list[float]()
        for _ in range(2):
            bob = await signed_in(cluster, 1, BOB)
            await ann.knows("bob")
            await cluster.settle()
            assert not timers, "bob is back"
            bob.disconnect()
            await eventually(lambda: _is_in(BOB, timers), within_s=30, what="bob's time has begun")
            left.append(timers[BOB].when())
        assert left[1] > left[0]
        assert ann.told == [{"online": ["bob"]}]


async def test_interruption_gives_a_user_who_has_left_more_time() -> None:
    async with town(late_s=100.0, grace_s=200.0) as cluster:
        ann = Client(cluster, 0, BOB).watch()
        bob = await signed_in(cluster, 1, BOB)
        await ann.knows("bob")
        bob.disconnect()
        timers = ann.users._timers
        await eventually(lambda: _is_in(BOB, timers), within_s=30, what="bob's time has begun")
        cluster.nodes[0].on_interrupted()
        assert timers[BOB].when() - asyncio.get_running_loop().time() > 150.0


async def test_read_that_is_older_than_a_notice_does_not_end_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    async with town(late_s=100.0) as cluster:
        ann = Client(cluster, 0, BOB).watch()
        bob = await signed_in(cluster, 1, BOB)
        await ann.knows("bob")
        is_asked, may_answer, directory = asyncio.Event(), asyncio.Event(), cluster.directories[0]

        async def answer_late(rosters: Any) -> list[int]:
            is_asked.set()
            await may_answer.wait()
            return [0] * len(rosters)

        with monkeypatch.context() as patched:
            patched.setattr(directory, "identity_counts", answer_late)
            ann.users._read_last(BOB)
            await is_asked.wait()
            bob.disconnect()
            await eventually(lambda: _is_in(BOB, ann.users._timers), within_s=30, what="bob's time has begun")
            may_answer.set()
            await cluster.settle()
        await signed_in(cluster, 1, EVE)
        eve = Client(cluster, 0, EVE).watch()
        await eve.knows("eve")
        assert ann.told == [{"online": ["bob"]}]


async def test_notice_that_comes_while_a_page_is_noted_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_users, "MARKED", 1)
    async with town() as cluster:
        ann = Client(cluster, 0, BOB, EVE).watch()
        await signed_in(cluster, 1, BOB)
        await signed_in(cluster, 1, EVE)
        await ann.knows("bob", "eve")
        await cluster.settle()
        answer, directory = cluster.directories[0].identity_counts, cluster.directories[0]

        async def answer_zero(rosters: Any) -> list[int]:
            monkeypatch.setattr(directory, "identity_counts", answer)
            return [0] * len(rosters)

        def tell(event: bytes) -> None:
            ann._hear(event)
            ann.users._read(EVE)  # as a notice does

        ann.watcher.write = tell
        ann.told.clear()
        monkeypatch.setattr(directory, "identity_counts", answer_zero)
        ann.users._read_last(BOB)
        ann.users._read_last(EVE)
        await ann.knows("eve")
        await cluster.settle()
        assert ann.told == [{"offline": ["bob"]}]


async def _is_in(key: str, found: Container[str]) -> bool:
    return key in found


async def test_lost_notice_is_noticed_without_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_users, "AGAIN_S", 0.1)
    async with town() as cluster:
        bob = await signed_in(cluster, 1, BOB)
        ann = Client(cluster, 0, BOB, EVE).watch()
        await ann.knows("bob")
        cluster.brokers[0].is_lossy = True
        bob.disconnect()
        await signed_in(cluster, 1, EVE)
        await ann.knows("eve")


@pytest.mark.parametrize("what", ["listen", "read"])
async def test_list_that_comes_while_redis_does_not_answer_is_told_later(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async with town() as cluster:
        part, name = (
            (cluster.brokers[0], "subscribe") if what == "listen" else (cluster.directories[0], "identity_counts")
        )
        answer, refused = getattr(part, name), list[Any]()

        async def refuse_twice(about: Any) -> Any:
            if len(refused) < 2:
                refused.append(about)
                raise BrokerUnavailable(name)
            return await answer(about)

        monkeypatch.setattr(online_users, "RETRY_S", 0.01)
        monkeypatch.setattr(part, name, refuse_twice)
        await signed_in(cluster, 1, BOB)
        ann = Client(cluster, 0, BOB, EVE).watch()
        await ann.knows("bob")
        assert ann.told == [{"online": ["bob"]}] and len(refused) == 2


@pytest.mark.parametrize("what", ["listen", "read"])
async def test_users_of_a_redis_that_is_unavailable_keep_no_others_from_being_known(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(online_users, "BEGIN_S", 0.3)
    monkeypatch.setattr(online_users, "RETRY_S", 0.05)
    async with town() as cluster:
        part, name = (
            (cluster.brokers[0], "subscribe") if what == "listen" else (cluster.directories[0], "identity_counts")
        )
        answer = getattr(part, name)

        async def fail_for_eve(about: Any) -> Any:
            if f"pusher.users:{EVE}" in ([about] if isinstance(about, str) else about):
                raise BrokerUnavailable(name)
            return await answer(about)

        monkeypatch.setattr(part, name, fail_for_eve)
        for key in (BOB, EVE, ZOE):
            await signed_in(cluster, 1, key)
        ann, dan = Client(cluster, 0, BOB, EVE).watch(), Client(cluster, 0, BOB, ZOE).watch()
        await dan.knows("bob", "zoe")
        if what == "read":
            assert ann.told == [], "its users are not all known"
            await ann.knows("bob")
        monkeypatch.setattr(part, name, answer)
        await ann.knows("bob", "eve")
        await eventually(lambda: _is_in(EVE, ann.users._listened), within_s=30, what="it listens")
        await cluster.settle()
        assert ann.told == (
            [{"online": ["bob"]}, {"online": ["eve"]}] if what == "read" else [{"online": ["bob", "eve"]}]
        )


async def test_client_that_has_gone_does_not_begin() -> None:
    async with town() as cluster:
        cluster.brokers[0].gate.clear()
        ann = Client(cluster, 0, BOB).watch()
        assert list(ann.users._begins) == [ann.watcher]
        ann.users.unwatch(ann.watcher)
        assert not ann.users._begins
        cluster.brokers[0].gate.set()


async def test_page_is_read_again_after_an_answer_that_nobody_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_users, "RETRY_S", 0.01)
    async with town() as cluster:
        directory = cluster.directories[0]
        answer, refused = directory.identity_counts, list[Any]()

        async def answer_too_little(rosters: Any) -> list[int]:
            if rosters and len(refused) < 2:
                refused.append(rosters)
                return []
            return await answer(rosters)

        monkeypatch.setattr(directory, "identity_counts", answer_too_little)
        await signed_in(cluster, 1, BOB)
        await Client(cluster, 0, BOB, EVE).watch().knows("bob")


async def test_user_is_listened_to_also_after_an_error_that_nobody_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_users, "RETRY_S", 0.01)
    async with town() as cluster:
        broker = cluster.brokers[0]
        with monkeypatch.context() as patched:
            has_failed = asyncio.Event()

            async def fail(_key: str) -> None:
                has_failed.set()
                raise RuntimeError("a fault of the node")

            patched.setattr(broker, "subscribe", fail)
            ann = Client(cluster, 0, BOB).watch()
            await has_failed.wait()
        await eventually(lambda: _is_in(f"pusher.users:{BOB}", broker.subscribed), within_s=30, what="it listens")
        await signed_in(cluster, 1, BOB)
        await ann.knows("bob")


async def test_user_whose_last_watcher_goes_before_the_node_listens_is_not_listened_to() -> None:
    async with town() as cluster:
        await signed_in(cluster, 1, BOB)
        key, broker = f"pusher.users:{BOB}", cluster.brokers[0]
        broker.gate.clear()
        gone = Client(cluster, 0, BOB).watch()
        await cluster.settle()
        gone.users.unwatch(gone.watcher)
        broker.gate.set()

        async def is_given_up() -> bool:
            return broker.unsubscribed == [key] and not broker.subscribed & {key}

        await eventually(is_given_up, within_s=30, what="the channel is given up")
        assert gone.told == []
        broker.gate.clear()
        gone.watch()
        await cluster.settle()
        gone.users.unwatch(gone.watcher)
        ann = Client(cluster, 0, BOB).watch()
        broker.gate.set()
        await ann.knows("bob")
        (await signed_in(cluster, 1, BOB)).disconnect()
        assert key in broker.subscribed and gone.told == []


async def test_client_that_fails_does_not_keep_others_from_their_events() -> None:
    has_failed = asyncio.Event()

    def fail(_event: bytes) -> None:
        has_failed.set()
        raise RuntimeError("a broken transport")

    async with town() as cluster:
        assert users_of(cluster, 0).watch(Watcher([EVE], fail))
        await signed_in(cluster, 1, EVE)
        await has_failed.wait()
        ann = Client(cluster, 0, BOB).watch()
        await signed_in(cluster, 1, BOB)
        await ann.knows("bob")


async def test_client_that_has_gone_is_not_kept() -> None:
    async with town() as cluster:
        await signed_in(cluster, 1, BOB)
        ann = Client(cluster, 0, BOB).watch()
        await ann.knows("bob")
        ann.users.unwatch(ann.watcher)
        kept = weakref.ref(ann)
        del ann
        gc.collect()
        assert kept() is None


async def test_node_watches_a_limited_number_of_users() -> None:
    async with town(1, watched=Watched(users_max=2)) as cluster:
        users, registry = users_of(cluster, 0), cluster.nodes[0].metrics.registry
        assert not users.watch(Watcher([BOB, EVE, ZOE], print))
        assert registry.get_sample_value("snorky_limit_hits_total", {"limit": "watched_users"}) == 1
        assert registry.get_sample_value("snorky_watched_users") == 0
        Client(cluster, 0, BOB, EVE).watch()
        assert registry.get_sample_value("snorky_watched_users") == 2


async def test_no_message_reaches_the_users() -> None:
    async with town(1) as cluster:
        client = await cluster.connect(0)
        with pytest.raises(UnknownService):
            users_of(cluster, 0).on_message(client.connection, {})
