"""Cursors: PROTOCOL "Services and their commands", and their guarantees on any number of nodes."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from snorky.gateway import BrokerUnavailable
from snorky.services.cursors import CursorsService
from snorky.services.rpc import Request
from tests.support.fakes.fake_wire import settle, until
from tests.support.fakes.memory_cluster import Resident, town

DOCUMENT = {"doc": 1}


def services() -> list[CursorsService]:
    return [CursorsService()]


async def join(client: Resident, document: Any = DOCUMENT) -> Any:
    return await client.ask("cursors", "join", document=document)


async def create(client: Resident, handle: Any = 1, document: Any = DOCUMENT, position: Any = 5) -> Any:
    params = {"privateHandle": handle, "document": document, "position": position, "status": "typing"}
    return await client.ask("cursors", "createCursor", **params)


def cursor(public_handle: int, owner: str, position: Any = 5, status: Any = "typing") -> dict[str, Any]:
    return {
        "publicHandle": public_handle,
        "document": DOCUMENT,
        "position": position,
        "status": status,
        "owner": owner,
    }


async def test_changes_of_a_cursor_reach_the_documents_other_clients() -> None:
    async with town(3, services) as nodes:
        author, twin, other = nodes.client(0, "ann"), nodes.client(1, "ann"), nodes.client(2, "bob")
        stranger = nodes.client(2, "eve")
        for client in (author, twin, other):
            assert await join(client) == {"cursors": []}
        public = await create(author)
        update = {"privateHandle": 1, "newData": {"position": [6], "more": 1}}
        assert await author.ask("cursors", "updateCursor", **update) is None
        assert await author.ask("cursors", "updateCursor", privateHandle=1, newData={"status": "idle"}) is None
        assert await author.ask("cursors", "removeCursor", privateHandle=1) is None
        expected = [
            {"type": "cursorAdded", "cursor": cursor(public, "ann")},
            {"type": "cursorUpdated", "cursor": cursor(public, "ann", [6])},
            {"type": "cursorUpdated", "cursor": cursor(public, "ann", [6], "idle")},
            {"type": "cursorRemoved", "cursor": {"publicHandle": public, "document": DOCUMENT}},
        ]
        for client in (twin, other):
            assert await client.notified(4) == expected, "an identity's other client is another client"
        await settle()
        assert author.notifications == stranger.notifications == []


async def test_join_returns_the_current_cursors() -> None:
    async with town(2, services) as nodes:
        author = nodes.client(0, "ann")
        await join(author)
        handles = [await create(author, handle) for handle in ("a", "b")]
        await author.ask("cursors", "updateCursor", privateHandle="b", newData={"position": None})
        told = await join(nodes.client(1, "bob"))
        expected = [cursor(handles[0], "ann"), cursor(handles[1], "ann", None)]
        assert sorted(told["cursors"], key=str) == sorted(expected, key=str)


async def test_leaving_and_going_take_ones_cursors_along() -> None:
    async with town(2, services) as nodes:
        watcher, author = nodes.client(0, "watcher"), nodes.client(1, "ann")
        for document in (DOCUMENT, "other"):
            await join(watcher, document)
            await join(author, document)
        first, second = await create(author, 1), await create(author, 2)
        third = await create(author, 3, "other")
        assert await author.ask("cursors", "leave", document=DOCUMENT) is None
        await watcher.notified(5)
        gone = [each["cursor"] for each in watcher.notifications if each["type"] == "cursorRemoved"]
        assert sorted(each["publicHandle"] for each in gone) == sorted([first, second])
        assert await author.ask("cursors", "updateCursor", privateHandle=1, newData={}) == "Error: No such cursor"
        author.leave()
        notes = await watcher.notified(6)
        assert notes[-1] == {"type": "cursorRemoved", "cursor": {"publicHandle": third, "document": "other"}}
        assert nodes.cluster.rosters == {}


async def test_texts_that_clients_match_on() -> None:
    async with town(1, services) as nodes:
        ann = nodes.client(0, "ann")
        assert await create(ann) == "Error: Not joined"
        assert await ann.ask("cursors", "leave", document=DOCUMENT) == "Error: Not joined"
        await join(ann)
        assert await join(ann) == "Error: Already joined"
        assert isinstance(await create(ann, {"any": ["entity"]}), int)
        assert await create(ann, {"any": ["entity"]}) == "Error: Reused handle"
        assert await ann.ask("cursors", "updateCursor", privateHandle=2, newData={}) == "Error: No such cursor"
        assert await ann.ask("cursors", "removeCursor", privateHandle=2) == "Error: No such cursor"
        wrong = {"privateHandle": {"any": ["entity"]}, "newData": 5}
        assert await ann.ask("cursors", "updateCursor", **wrong) == "Error: Invalid params"


async def test_client_has_at_most_sixteen_cursors() -> None:
    async with town(1, services) as nodes:
        ann = nodes.client(0, "ann")
        await join(ann)
        await join(ann, "other")
        handles = [await create(ann, number, DOCUMENT if number % 2 else "other") for number in range(16)]
        assert len(set(handles)) == 16
        assert await create(ann, 16) == "Error: Too many cursors"
        await ann.ask("cursors", "removeCursor", privateHandle=3)
        assert isinstance(await create(ann, 16), int)


@pytest.mark.parametrize(
    ("command", "params"),
    [
        ("join", {"document": 1}),
        ("leave", {"document": 1}),
        ("createCursor", {"privateHandle": 1, "document": 1, "position": 1, "status": 1}),
        ("updateCursor", {"privateHandle": 1, "newData": {}}),
        ("removeCursor", {"privateHandle": 1}),
    ],
)
async def test_anonymous_client_gets_not_authenticated(command: str, params: dict[str, Any]) -> None:
    async with town(1, services) as nodes:
        assert await nodes.client(0).ask("cursors", command, **params) == "Error: Not authenticated"


@pytest.mark.parametrize("is_coroutine", [False, True])
async def test_hook_decides_which_clients_may_join(is_coroutine: bool) -> None:
    class Guarded(CursorsService):
        def can_join(self, request: Request, document: Any) -> bool | Awaitable[bool]:
            verdict = request.identity == "ann"
            return asyncio.sleep(0, verdict) if is_coroutine else verdict

    async with town(1, lambda: [Guarded()]) as nodes:
        assert await join(nodes.client(0, "ann")) == {"cursors": []}
        assert await join(nodes.client(0, "eve")) == "Error: Not authorized"


async def test_cursor_that_could_not_be_made_leaves_its_handle_free() -> None:
    async with town(2, services) as nodes:
        ann, watcher = nodes.client(0, "ann"), nodes.client(1, "watcher")
        await join(ann)
        await join(watcher)
        nodes.cluster.is_failing = True
        assert await create(ann) == f"Error: {BrokerUnavailable('x')}"
        nodes.cluster.is_failing = False
        public = await create(ann)
        await watcher.notified(1)
        assert [each["cursor"]["publicHandle"] for each in watcher.notifications] == [public]


async def test_cursor_lost_by_redis_is_moved_and_registered_with_its_current_state() -> None:
    async with town(2, services) as nodes:
        ann = nodes.client(0, "ann")
        await join(ann)
        public = await create(ann)
        nodes.cluster.rosters.clear()
        assert await ann.ask("cursors", "updateCursor", privateHandle=1, newData={"position": 9}) is None
        nodes.cluster.flush()
        assert await join(nodes.client(1, "bob")) == {"cursors": [cursor(public, "ann", 9)]}


async def test_cursors_of_a_dead_node_are_removed_once_each() -> None:
    async with town(3, services) as nodes:
        watcher, ann = nodes.client(0, "watcher"), nodes.client(1, "ann")
        await join(watcher)
        await join(ann)
        handles = {await create(ann, number) for number in range(3)}
        await watcher.notified(3)
        nodes.directories[1].die()
        notes = await watcher.notified(6)
        await settle()
        assert len(watcher.notifications) == 6
        assert {each["cursor"]["publicHandle"] for each in notes[3:]} == handles
        assert {each["type"] for each in notes[3:]} == {"cursorRemoved"}


async def test_update_during_a_join_comes_after_the_list() -> None:
    async with town(2, services) as nodes:
        ann, bob = nodes.client(0, "ann"), nodes.client(1, "bob")
        await join(ann)
        public = await create(ann)
        gate = asyncio.Event()
        listed = nodes.directories[1].listed

        async def gated(roster: str) -> Any:
            census = await listed(roster)
            await gate.wait()
            return census

        nodes.directories[1].listed = gated  # type: ignore[method-assign]  # the answer comes late
        call_id = bob.call("cursors", "join", document=DOCUMENT)
        await until(lambda: nodes.brokers[1].subscribed)
        await settle()
        await ann.ask("cursors", "updateCursor", privateHandle=1, newData={"position": 9})
        await settle()
        assert bob.inbox == []
        gate.set()
        assert await bob.answer(call_id) == {"cursors": [cursor(public, "ann")]}
        assert await bob.notified(1) == [{"type": "cursorUpdated", "cursor": cursor(public, "ann", 9)}]
