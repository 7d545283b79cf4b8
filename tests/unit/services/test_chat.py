"""Chat: PROTOCOL "Services and their commands", and its guarantees on any number of nodes."""

import asyncio
from collections.abc import Awaitable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from snorky.gateway import BrokerUnavailable
from snorky.services.chat import ChatService
from snorky.services.rpc import Request
from tests.support.fakes.fake_wire import settle, until
from tests.support.fakes.memory_cluster import Resident, town

CLOCK = datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone(timedelta(hours=2)))
STAMP = "2026-03-04T05:06:07+02:00"


def services() -> list[ChatService]:
    return [ChatService(clock=lambda: CLOCK)]


def presence(identity: str, status: str, channel: Any = "room") -> dict[str, Any]:
    return {"type": "presence", "from": identity, "channel": channel, "status": status, "timestamp": STAMP}


def message(identity: str, body: Any, channel: Any = "room") -> dict[str, Any]:
    return {"type": "message", "from": identity, "channel": channel, "body": body, "timestamp": STAMP}


async def join(client: Resident, channel: Any = "room") -> Any:
    return await client.ask("chat", "join", channel=channel)


async def fence(*clients: Resident) -> None:
    """Wait until everything in flight has arrived."""
    await settle(30)


async def test_members_are_listed_once_an_identity_and_sorted() -> None:
    async with town(3, services) as nodes:
        assert await join(nodes.client(0, "zoe")) == {"members": ["zoe"]}
        assert await join(nodes.client(1, "adam")) == {"members": ["adam", "zoe"]}
        assert await join(nodes.client(2, "zoe")) == {"members": ["adam", "zoe"]}


async def test_presence_is_sent_once_per_identity_and_not_to_itself() -> None:
    async with town(3, services) as nodes:
        watcher, first, second = nodes.client(0, "watcher"), nodes.client(1, "bob"), nodes.client(2, "bob")
        for client in (watcher, first, second):
            await join(client)
        assert await first.ask("chat", "leave", channel="room") is None
        await fence()
        assert watcher.notifications == [presence("bob", "joined")]
        second.leave()
        await watcher.notified(2)
        await fence()
        assert watcher.notifications == [presence("bob", "joined"), presence("bob", "left")]
        assert first.notifications == second.notifications == []


async def test_message_reaches_exactly_the_members_sender_included() -> None:
    async with town(3, services) as nodes:
        members = [nodes.client(number, f"m{number}") for number in range(3)]
        stranger, gone = nodes.client(1, "stranger"), nodes.client(2, "gone")
        for client in (gone, *members):
            await join(client)
        await gone.ask("chat", "leave", channel="room")
        before = len(gone.notifications)
        assert await members[0].ask("chat", "send", channel="room", body={"x": [1]}) is None
        for member in members:
            await member.hears(message("m0", {"x": [1]}))
        await fence()
        assert stranger.notifications == []
        assert len(gone.notifications) == before


async def test_read_reaches_the_same_identitys_other_connections_only() -> None:
    async with town(3, services) as nodes:
        reader, twin, twin_here = nodes.client(0, "bob"), nodes.client(1, "bob"), nodes.client(0, "bob")
        other = nodes.client(2, "carol")
        for client in (reader, twin, twin_here, other):
            await join(client)
        assert await reader.ask("chat", "read", channel="room") is None
        expected = {"type": "read", "channel": "room", "timestamp": STAMP}
        for client in (twin, twin_here):
            await client.hears(expected)
        await fence()
        assert expected not in reader.notifications + other.notifications


@pytest.mark.parametrize(
    ("command", "params"),
    [("join", {}), ("leave", {}), ("send", {"body": 1}), ("read", {})],
)
async def test_anonymous_client_gets_not_authenticated(command: str, params: dict[str, Any]) -> None:
    async with town(1, services) as nodes:
        nobody = nodes.client(0)
        assert await nobody.ask("chat", command, channel="room", **params) == "Error: Not authenticated"
        assert nodes.cluster.rosters == {}


async def test_second_join_and_leave_without_join_are_errors() -> None:
    async with town(1, services) as nodes:
        bob = nodes.client(0, "bob")
        assert await bob.ask("chat", "leave", channel="room") == "Error: Not joined"
        assert await bob.ask("chat", "send", channel="room", body=1) == "Error: Not joined"
        await join(bob, {"a": 1, "b": 2})
        assert await join(bob, {"b": 2.0, "a": 1}) == "Error: Already joined"
        assert await bob.ask("chat", "leave", channel={"a": 1, "b": 2}) is None
        assert await bob.ask("chat", "leave", channel={"a": 1, "b": 2}) == "Error: Not joined"


@pytest.mark.parametrize("is_coroutine", [False, True])
async def test_hook_decides_which_clients_may_join(is_coroutine: bool) -> None:
    class Guarded(ChatService):
        def can_join(self, request: Request, channel: Any) -> bool | Awaitable[bool]:
            verdict = request.identity == "bob" and channel == "room"
            return asyncio.sleep(0, verdict) if is_coroutine else verdict

    async with town(1, lambda: [Guarded()]) as nodes:
        assert await join(nodes.client(0, "bob")) == {"members": ["bob"]}
        assert await join(nodes.client(0, "eve")) == "Error: Not authorized"
        assert await join(nodes.client(0, "bob"), "cellar") == "Error: Not authorized"
        assert nodes.nodes[0].counts["subscriptions"] == 1


async def test_failed_join_leaves_no_state() -> None:
    async with town(2, services) as nodes:
        watcher, bob = nodes.client(0, "watcher"), nodes.client(1, "bob")
        await join(watcher)
        nodes.cluster.is_failing = True
        assert await join(bob) == f"Error: {BrokerUnavailable('x')}"
        assert nodes.nodes[1].counts["subscriptions"] == 0
        nodes.cluster.is_failing = False
        assert await join(bob) == {"members": ["bob", "watcher"]}
        await fence()
        assert watcher.notifications == [presence("bob", "joined")]


async def test_join_after_a_failed_one_is_not_undone_by_its_cleanup() -> None:
    """The node must send Redis a `leave` for a join whose answer was lost."""
    async with town(2, services) as nodes:
        watcher, bob = nodes.client(0, "watcher"), nodes.client(1, "bob")
        await join(watcher)
        nodes.cluster.is_failing = True
        await join(bob)
        await settle()  # now it waits for its retry
        nodes.cluster.is_failing = False
        await join(bob)
        task = nodes.nodes[1].ownership._release_task
        assert task is not None
        await task
        assert [each["from"] for each in watcher.notifications] == ["bob"]
        assert await join(nodes.client(0, "late")) == {"members": ["bob", "late", "watcher"]}


async def test_client_that_disconnects_while_joining_is_no_member() -> None:
    async with town(2, services, late=5) as nodes:
        watcher, bob = nodes.client(0, "watcher"), nodes.client(1, "bob")
        await join(watcher)
        bob.call("chat", "join", channel="room")
        await until(lambda: len(watcher.notifications) == 1)
        bob.leave()
        await watcher.notified(2)
        assert watcher.notifications == [presence("bob", "joined"), presence("bob", "left")]
        assert await join(nodes.client(0, "late")) == {"members": ["late", "watcher"]}


async def test_messages_during_a_join_are_written_after_the_reply() -> None:
    """Otherwise a `left` could come before the list that still has the member, and the member would stay listed."""
    async with town(2, services, late=0) as nodes:
        leaver, bob = nodes.client(0, "leaver"), nodes.client(1, "bob")
        await join(leaver)
        gate = asyncio.Event()
        enter = nodes.directories[1].enter

        async def gated(*args: Any, **kwargs: Any) -> Any:
            entered = await enter(*args, **kwargs)
            await gate.wait()
            return entered

        nodes.directories[1].enter = gated  # type: ignore[method-assign]  # the answer comes late
        call_id = bob.call("chat", "join", channel="room")
        await leaver.notified(1)
        leaver.leave()
        await until(lambda: nodes.bus.published[-1][1].endswith(b"}") and b'"left"' in nodes.bus.published[-1][1])
        await fence()
        assert bob.inbox == [], "buffered until the reply"
        gate.set()
        assert await bob.answer(call_id) == {"members": ["bob", "leaver"]}
        await bob.notified(1)
        assert [each["type"] for each in bob.inbox] == ["response", "presence"]
        assert bob.notifications == [presence("leaver", "left")]


async def test_dead_node_gives_one_left_for_each_of_its_members() -> None:
    async with town(3, services) as nodes:
        watcher = nodes.client(0, "watcher")
        await join(watcher)
        for identity in ("bob", "carol"):
            await join(nodes.client(1, identity))
        await join(nodes.client(2, "carol"))
        await watcher.notified(2)
        nodes.directories[1].die()
        await watcher.notified(3)
        await fence()
        assert watcher.notifications[2:] == [presence("bob", "left")], "carol has another connection"


async def test_timestamp_has_an_offset_by_default() -> None:
    async with town(1, lambda: [ChatService()]) as nodes:
        bob = nodes.client(0, "bob")
        await join(bob)
        await bob.ask("chat", "send", channel="room", body=None)
        (note,) = await bob.notified(1)
        stamp = datetime.fromisoformat(note["timestamp"])
        assert stamp.utcoffset() is not None
        assert abs(datetime.now(stamp.tzinfo) - stamp) < timedelta(minutes=1)


async def test_channel_keeps_its_json_type_in_notifications() -> None:
    async with town(2, services) as nodes:
        watcher = nodes.client(0, "watcher")
        channel = {"doc": [1, None, "é"]}
        await join(watcher, channel)
        await join(nodes.client(1, "bob"), channel)
        await watcher.notified(1)
        assert watcher.notifications == [presence("bob", "joined", channel)]
